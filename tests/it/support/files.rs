//! Temporary folders of this process, the user that servers run as, and their removal whatever happens.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty one, owned by the user that servers run as. Its path is short, as Unix sockets need.
    pub fn new(kind: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = base().join(format!("{kind}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        give_to_server_user(&path);
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("KEEP_FILES").is_none() {
            // A process that is still ending may write once more; the exit hook removes what is left.
            drop(fs::remove_dir_all(&self.0));
        }
    }
}

/// User and group that servers run as when we are root, which PostgreSQL refuses.
pub fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let find = |name: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        Some(find("postgres").or_else(|| find("nobody")).expect("a user 'postgres' or 'nobody' to run servers as"))
    })
}

/// Hands a file or folder to the user that servers run as.
pub fn give_to_server_user(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// A file for servers only.
pub fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    give_to_server_user(path);
}

/// This process's own folder under the temporary one. Removed at exit; what killed processes left is swept here.
fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let root = std::env::temp_dir();
        // sun_path holds 107 bytes; a socket's name takes about 40 of them.
        let root = if root.as_os_str().len() > 50 { PathBuf::from("/tmp") } else { root };
        sweep(&root);
        let path = root.join(format!("mstest-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        at_exit();
        path
    })
}

fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("mstest-")) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

fn at_exit() {
    unsafe extern "C" {
        safe fn atexit(hook: extern "C" fn()) -> i32;
    }
    extern "C" fn clean() {
        super::process::kill_all();
        if std::env::var_os("KEEP_FILES").is_none() {
            let path = base();
            // Servers that were just killed may still be writing.
            for _ in 0..20 {
                match fs::remove_dir_all(path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        std::thread::sleep(std::time::Duration::from_millis(50))
                    }
                    _ => break,
                }
            }
        }
    }
    assert_eq!(atexit(clean), 0, "atexit");
}
