//! A folder in memory that loses, when it crashes, whatever the real one may lose.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::queue::embedded::storage::{File, Folder};

/// Small, so that few bytes make many pages.
const PAGE: usize = 64;
type Bytes = [u8; PAGE];

/// What goes wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails: nothing works until [`Disk::crash`].
    Power,
    /// The process is killed before this; what it wrote stays with the kernel.
    Kill,
    /// The sync fails; some pages were written, the others are clean and lost.
    Sync,
    /// No room, after a part of the write.
    Full,
    /// The write is short, and that is all.
    Short,
}

/// The disk.
pub struct Disk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    random: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<NameChange>,
    armed: Option<(Fault, u32)>,
    dead: bool,
    sync_failed: bool,
    free: u64,
}

enum NameChange {
    Make(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

#[derive(Default)]
struct Inode {
    pages: Vec<Page>,
    length: u64,
    /// What the length may be after a crash: between the least and the largest.
    lengths: Vec<u64>,
}

struct Page {
    /// What readers see.
    now: Bytes,
    /// What a crash may leave; the first is what was synced last.
    versions: Vec<Bytes>,
    /// A sync failed: what readers see is not on disk, and no later sync writes it.
    lost: bool,
}

impl Disk {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { random: seed, free: u64::MAX, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// After so many more changes, this goes wrong.
    pub fn arm(&self, fault: Fault, after: u32) {
        self.state().armed = Some((fault, after));
    }

    /// So much is left.
    pub fn set_free(&self, bytes: u64) {
        self.state().free = bytes;
    }

    /// True when the power is off.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// True when a file's sync has failed since this was asked before.
    pub fn sync_failed(&self) -> bool {
        std::mem::take(&mut self.state().sync_failed)
    }

    /// The power fails, if it has not yet, and comes back: what was not synced is lost, page by page.
    pub fn crash(&self) {
        let state = &mut *self.state();
        let mut names = std::mem::take(&mut state.durable_names);
        for change in std::mem::take(&mut state.pending) {
            if next(&mut state.random).is_multiple_of(2) {
                apply(&mut names, &change);
            }
        }
        state.names.clone_from(&names);
        state.durable_names = names;
        for inode in &mut state.inodes {
            inode.crash(&mut state.random);
        }
        (state.armed, state.dead) = (None, false);
    }

    /// Turns a byte of a file over, on disk.
    pub fn flip(&self, name: &str, at: u64) {
        let state = &mut *self.state();
        let page = &mut state.inodes[state.names[name]].pages[at as usize / PAGE];
        page.now[at as usize % PAGE] ^= 0x10;
        page.versions = vec![page.now];
    }
}

fn next(random: &mut u64) -> u64 {
    // splitmix64
    *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *random;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Make(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameChange::Rename(from, to, inode) => {
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

impl State {
    /// Before each change: what goes wrong with it.
    fn fault(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(io::Error::other("the power is off"));
        }
        match &mut self.armed {
            Some((fault, 0)) => {
                let fault = *fault;
                self.armed = None;
                self.dead = fault == Fault::Power;
                if matches!(fault, Fault::Power | Fault::Kill) {
                    return Err(io::Error::other(format!("{fault:?}")));
                }
                Ok(Some(fault))
            }
            Some((_, left)) => {
                *left -= 1;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        if let Some(Fault::Full) = self.fault()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        apply(&mut self.names, &change);
        self.pending.push(change);
        Ok(())
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], at: u64) {
        let end = at as usize + bytes.len();
        while self.pages.len() * PAGE < end {
            self.pages.push(Page { now: [0; PAGE], versions: vec![[0; PAGE]], lost: false });
        }
        let mut done = 0;
        while done < bytes.len() {
            let (page, within) = ((at as usize + done) / PAGE, (at as usize + done) % PAGE);
            let count = (PAGE - within).min(bytes.len() - done);
            let page = &mut self.pages[page];
            page.now[within..within + count].copy_from_slice(&bytes[done..done + count]);
            page.versions.push(page.now);
            page.lost = false;
            done += count;
        }
        self.length = self.length.max(end as u64);
        self.lengths.push(self.length);
    }

    fn set_len(&mut self, length: u64) {
        let old = self.length;
        if length < old {
            self.write(&vec![0; (old - length) as usize], length);
        }
        self.length = length;
        self.lengths.push(length);
    }

    fn sync(&mut self) {
        for page in self.pages.iter_mut().filter(|page| !page.lost) {
            page.versions = vec![page.now];
        }
        self.lengths = vec![self.length];
    }

    /// Some pages reach the disk; the others count as clean and will not be written by a later sync.
    fn fail_sync(&mut self, random: &mut u64) {
        for page in &mut self.pages {
            page.lost |= page.versions.len() > 1 && next(random).is_multiple_of(2);
            page.versions = vec![if page.lost { page.versions[0] } else { page.now }];
        }
    }

    fn crash(&mut self, random: &mut u64) {
        for page in &mut self.pages {
            page.now = page.versions[next(random) as usize % page.versions.len()];
            page.lost = false;
        }
        let least = self.lengths.iter().copied().min().unwrap_or(0);
        let most = self.lengths.iter().copied().max().unwrap_or(0);
        self.length = match next(random) % 3 {
            0 => least,
            1 => most,
            _ => least + next(random) % (most - least + 1),
        };
        let end = self.length as usize;
        for (index, page) in self.pages.iter_mut().enumerate() {
            let start = index * PAGE;
            page.now[end.clamp(start, start + PAGE) - start..].fill(0);
        }
        self.sync();
    }
}

struct Open {
    disk: Arc<Disk>,
    inode: usize,
}

impl File for Open {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let inode = &state.inodes[self.inode];
        let count = (inode.length.saturating_sub(at) as usize).min(buffer.len());
        for (index, byte) in buffer[..count].iter_mut().enumerate() {
            let place = at as usize + index;
            *byte = inode.pages[place / PAGE].now[place % PAGE];
        }
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let state = &mut *self.disk.state();
        let was_dead = state.dead;
        let fault = state.fault();
        let some = next(&mut state.random) as usize % bytes.len();
        let inode = &mut state.inodes[self.inode];
        match fault {
            Err(error) => {
                if !was_dead {
                    inode.write(&bytes[..some], at);
                }
                Err(error)
            }
            Ok(Some(Fault::Full)) => {
                inode.write(&bytes[..some], at);
                Err(io::ErrorKind::StorageFull.into())
            }
            Ok(Some(Fault::Short)) if some > 0 => {
                inode.write(&bytes[..some], at);
                Ok(some)
            }
            _ => {
                inode.write(bytes, at);
                Ok(bytes.len())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].length)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let state = &mut *self.disk.state();
        state.fault()?;
        state.inodes[self.inode].set_len(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let fault = state.fault()?;
        let inode = &mut state.inodes[self.inode];
        match fault {
            Some(Fault::Sync) => {
                inode.fail_sync(&mut state.random);
                state.sync_failed = true;
                Err(io::Error::other("the sync fails"))
            }
            _ => {
                inode.sync();
                Ok(())
            }
        }
    }
}

impl Folder for Arc<Disk> {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let state = &mut *self.state();
        let inode = state.inodes.len();
        state.change_names(NameChange::Make(name.to_owned(), inode))?;
        state.inodes.push(Inode { lengths: vec![0], ..Inode::default() });
        Ok(Arc::new(Open { disk: Arc::clone(self), inode }))
    }

    fn open(&self, name: &str, _write: bool) -> io::Result<Arc<dyn File>> {
        let inode = self.state().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open { disk: Arc::clone(self), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let state = &mut *self.state();
        let inode = state.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let state = &mut *self.state();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(NameChange::Remove(name.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.state();
        if let Some(Fault::Sync) = state.fault()? {
            return Err(io::Error::other("the sync fails"));
        }
        for change in std::mem::take(&mut state.pending) {
            apply(&mut state.durable_names, &change);
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state().free)
    }
}
