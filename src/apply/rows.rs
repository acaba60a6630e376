//! Rows borrowed from the log, side by side in one allocation: what compaction folds and what statements take their values from.

use crate::event::{Cell, Row};

/// Rows of equal width in one allocation: the new cells, then the cells that find the row.
#[derive(Debug)]
pub struct RowSet<'a> {
    columns: usize,
    width: usize,
    cells: Vec<Cell<'a>>,
}

impl<'a> RowSet<'a> {
    /// Rows of some new cells and some finding cells.
    #[must_use]
    pub fn new(columns: usize, finders: usize) -> Self {
        Self { columns, width: columns + finders, cells: Vec::new() }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len().checked_div(self.width).unwrap_or(0)
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Where the finding cells begin.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A row: new cells, then finding cells.
    #[must_use]
    pub fn row(&self, index: u32) -> &[Cell<'a>] {
        let start = index as usize * self.width;
        &self.cells[start..start + self.width]
    }

    /// The cells that find a row.
    #[must_use]
    pub fn finders(&self, index: u32) -> &[Cell<'a>] {
        &self.row(index)[self.columns..]
    }

    pub(super) fn row_mut(&mut self, index: u32) -> &mut [Cell<'a>] {
        let start = index as usize * self.width;
        &mut self.cells[start..start + self.width]
    }

    /// Appends a row whose finding cells are NULL for now. Missing cells are NULL.
    pub fn push(&mut self, new: Option<&'a Row>) -> u32 {
        let index = self.len() as u32;
        if let Some(row) = new {
            self.cells.extend(row.iter().take(self.columns));
        }
        self.cells.resize((index as usize + 1) * self.width, Cell::Null);
        index
    }

    /// Sets a row's finding cells from some cells of a row.
    pub fn set_finders(&mut self, index: u32, from: &'a Row, columns: &[usize]) {
        let at = self.columns;
        let row = self.row_mut(index);
        pick(from, columns, |nth, cell| row[at + nth] = cell);
    }

    /// Copies some new cells of a row over its finding cells.
    pub(super) fn find_by_new(&mut self, index: u32, columns: &[usize]) {
        let at = self.columns;
        let row = self.row_mut(index);
        for (nth, &column) in columns.iter().enumerate() {
            row[at + nth] = row[column];
        }
    }

    /// Fills unchanged cells of a row from a whole image of it.
    pub fn complete(&mut self, index: u32, from: &'a Row) {
        let columns = self.columns;
        for (cell, known) in self.row_mut(index)[..columns].iter_mut().zip(from.iter()) {
            if *cell == Cell::Unchanged {
                *cell = known;
            }
        }
    }

    /// Appends the rows of another set of the same width.
    pub fn append(&mut self, other: &Self) {
        debug_assert_eq!(self.width, other.width);
        self.cells.extend_from_slice(&other.cells);
    }

    /// Appends a copy of a row.
    pub(super) fn push_again(&mut self, index: u32) {
        let start = index as usize * self.width;
        self.cells.extend_from_within(start..start + self.width);
    }

    pub(super) fn pop(&mut self) {
        self.cells.truncate(self.cells.len() - self.width);
    }

    pub(super) fn incomplete(&self, index: u32) -> bool {
        self.row(index)[..self.columns].contains(&Cell::Unchanged)
    }

    /// Lays the changed cells of one row over another.
    pub(super) fn overlay(&mut self, onto: u32, from: u32) {
        for column in 0..self.columns {
            let cell = self.row(from)[column];
            if cell != Cell::Unchanged {
                self.row_mut(onto)[column] = cell;
            }
        }
    }

    /// Fills the unchanged cells of one row from another.
    pub(super) fn fill(&mut self, row: u32, from: u32) {
        for column in 0..self.columns {
            if self.row(row)[column] == Cell::Unchanged {
                let cell = self.row(from)[column];
                self.row_mut(row)[column] = cell;
            }
        }
    }
}

/// Gives some cells of a row, in the order of `columns`, which need not be ascending.
pub(crate) fn pick<'a>(row: &'a Row, columns: &[usize], mut take: impl FnMut(usize, Cell<'a>)) {
    if let [only] = columns {
        if let Some(cell) = row.iter().nth(*only) {
            take(0, cell);
        }
        return;
    }
    for (index, cell) in row.iter().enumerate() {
        for (nth, _) in columns.iter().enumerate().filter(|(_, column)| **column == index) {
            take(nth, cell);
        }
    }
}

/// Columns that an update of a row sets: known cells, without those of the key.
pub fn set_columns<'r>(row: &'r [Cell<'_>], key: &'r [usize]) -> impl Iterator<Item = usize> + 'r {
    row.iter().enumerate().filter(|(column, cell)| **cell != Cell::Unchanged && !key.contains(column)).map(|(column, _)| column)
}
