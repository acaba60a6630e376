//! Figures: medians, spread, and the ratio to the first row of each group.

use std::fmt::Write as _;

use crate::Wish;

/// One competitor's figure.
pub struct Row {
    what: String,
    who: String,
    unit: &'static str,
    samples: Vec<f64>,
}

impl Row {
    pub fn new(what: &str, who: &str, unit: &'static str) -> Self {
        Self { what: what.into(), who: who.into(), unit, samples: Vec::new() }
    }

    pub fn add(&mut self, sample: f64) {
        self.samples.push(sample);
    }

    fn median(&self) -> f64 {
        percentile(&mut self.samples.clone(), 0.5)
    }

    fn spread(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64| self.samples.iter().copied().reduce(f).unwrap_or(f64::NAN);
        (fold(f64::min), fold(f64::max))
    }
}

/// A sample that this share of all lies at or below.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let index = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
    samples.get(index).copied().unwrap_or(f64::NAN)
}

/// All figures. The first row of a group is its baseline.
#[derive(Default)]
pub struct Report(Vec<(Vec<Row>, bool)>);

impl Report {
    /// A group; `more_is_better` tells how to read its ratios.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Row>, more_is_better: bool) {
        self.0.push((rows.into_iter().filter(|row| !row.samples.is_empty()).collect(), more_is_better));
    }

    pub fn print(&self) {
        println!("{}", self.markdown());
    }

    fn markdown(&self) -> String {
        let mut out =
            String::from("| what | who | median | min to max | n | ratio to the first |\n|---|---|---:|---:|---:|---:|\n");
        for (rows, more) in &self.0 {
            let baseline = rows.first().map_or(f64::NAN, Row::median);
            for row in rows {
                let (low, high) = row.spread();
                let ratio = row.median() / baseline;
                let better = if *more { "more is better" } else { "less is better" };
                let (what, who, unit, n) = (&row.what, &row.who, row.unit, row.samples.len());
                let number = |x: f64| if x >= 1000.0 { format!("{x:.0}") } else { format!("{x:.2}") };
                writeln!(
                    out,
                    "| {what} | {who} | {} {unit} | {} to {} | {n} | {ratio:.2}x ({better}) |",
                    number(row.median()),
                    number(low),
                    number(high)
                )
                .expect("a string");
            }
        }
        out
    }

    pub fn write(&self, wish: &Wish) {
        if let Some(file) = &wish.markdown {
            std::fs::write(file, self.markdown()).expect("the markdown file");
        }
        if let Some(file) = &wish.json {
            let rows = self.0.iter().flat_map(|(rows, more)| rows.iter().map(move |row| (row, more)));
            let list: Vec<_> = rows
                .map(|(row, more)| serde_json::json!({"what": row.what, "who": row.who, "unit": row.unit, "median": row.median(), "samples": row.samples, "more_is_better": more}))
                .collect();
            std::fs::write(file, serde_json::to_string_pretty(&list).expect("JSON")).expect("the JSON file");
        }
    }
}
