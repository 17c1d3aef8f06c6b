//! Locks that keep two writers, or a writer and readers, from one disk.
//!
//! Open-file-description locks on the whole file (`F_OFD_SETLK`): they go with the descriptor, whichever process or
//! thread holds it, end with it, and stand against the locks that QEMU and cloud-hypervisor take.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gvmm_plugin_api::tracing::warn;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::ImageError;

/// Locks the whole file, shared for readers and exclusive for a writer, until the file is closed.
pub(super) fn lock(file: &File, path: &Path, write: bool) -> Result<(), ImageError> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(write))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(conflict(file, path, write)),
        Err(error @ (Errno::ENOLCK | Errno::EINVAL | Errno::EOPNOTSUPP)) => {
            warn!(
                "disk {}: its file system has no locks ({error}); nothing keeps a second writer away",
                path.display()
            );
            Ok(())
        }
        Err(error) => Err(ImageError::Io { path: path.to_owned(), what: "lock it", source: error.into() }),
    }
}

fn whole_file(write: bool) -> libc::flock {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    // Length 0 reaches to the end, wherever it moves; the process id must be 0 for this kind of lock. The constants
    // fit: the kernel's fields are 16 bits wide.
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn conflict(file: &File, path: &Path, write: bool) -> ImageError {
    let mut found = whole_file(write);
    let known = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).is_ok();
    let how = if known && i32::from(found.l_type) == libc::F_RDLCK { "for reading" } else { "for writing" };
    // A lock of the older kind names its process; one of this kind does not, so look who has the file open.
    let process = if known && found.l_pid > 0 { Some(found.l_pid.to_string()) } else { holder(file) };
    let holder = process.map_or_else(|| "another program".to_owned(), |pid| describe(&pid));
    ImageError::Locked { path: path.to_owned(), how, holder }
}

fn describe(pid: &str) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// A process that holds a lock on the file, as far as this user may look.
fn holder(file: &File) -> Option<String> {
    let own = std::os::fd::AsRawFd::as_raw_fd(file).to_string();
    let wanted = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok()?;
    let me = std::process::id().to_string();
    let processes =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    processes.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).find(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().filter_map(|entry| entry.file_name().into_string().ok()).any(|fd| {
            let same = fs::metadata(format!("/proc/{pid}/fd/{fd}"))
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == wanted);
            let is_own = *pid == me && fd == own;
            same && !is_own
                && fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))
                    .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
        })
    })
}
