//! Where this program is.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The file of this program, beside which its plugins and the other programs lie.
///
/// A program that was started by naming it to the dynamic loader, as is done with a C library that is not the
/// system's, is what its first argument says: the kernel knows the loader alone.
pub fn path() -> Option<PathBuf> {
    let running = env::current_exe().ok()?;
    let named = env::args_os().next();
    program_of(running, named.as_deref())
}

fn program_of(running: PathBuf, named: Option<&OsStr>) -> Option<PathBuf> {
    match is_loader(&running) {
        true => Path::new(named?).canonicalize().ok(),
        false => Some(running),
    }
}

/// The names of glibc's loaders: `ld-linux-aarch64.so.1`, `ld-linux-x86-64.so.2`, ...
fn is_loader(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-linux"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_the_file_that_runs() {
        assert_eq!(program_of("/usr/bin/gvmm".into(), Some(OsStr::new("x"))), Some("/usr/bin/gvmm".into()));
    }

    #[test]
    fn a_program_that_the_loader_runs_is_what_it_was_called() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("gvmm");
        std::fs::write(&program, "").unwrap();
        let loader = PathBuf::from("/opt/gvmm/lib/ld-linux-aarch64.so.1");
        assert_eq!(program_of(loader.clone(), Some(program.as_os_str())), program.canonicalize().ok());
        assert_eq!(program_of(loader.clone(), Some(OsStr::new("/nowhere"))), None);
        assert_eq!(program_of(loader, None), None);
    }
}
