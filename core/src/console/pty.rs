//! A pseudo-terminal as a console: whoever opens its path sees the guest.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::server::Door;
use super::terminal;

/// A pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    master: OwnedFd,
    path: PathBuf,
    link: Option<PathBuf>,
    /// Tells when someone opens the terminal.
    opened: Inotify,
    /// The client while there is one.
    client: Weak<OwnedFd>,
}

impl Pty {
    /// A fresh pseudo-terminal, with a symbolic link to it if one is asked for.
    pub(super) fn new(link: Option<&Path>) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot make a pseudo-terminal: {error}");
        let mut pty = Self::open().map_err(|error| failed(&error))?;
        if let Some(link) = link {
            make_link(&pty.path, link)?;
            pty.link = Some(link.to_owned());
        }
        Ok(pty)
    }

    fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(ptsname_r(&master)?);
        make_raw(&path)?;
        let opened = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        opened.add_watch(&path, AddWatchFlags::IN_OPEN)?;
        // SAFETY: the master gives its descriptor away.
        let master = unsafe { OwnedFd::from_raw_fd(master.into_raw_fd()) };
        Ok(Self { master, path, link: None, opened, client: Weak::new() })
    }

    /// Where to open it.
    pub(super) fn path(&self) -> &Path {
        self.link.as_ref().unwrap_or(&self.path)
    }

    /// A function that tells columns and rows of whoever looks.
    pub(super) fn size(&self) -> io::Result<impl Fn() -> (u16, u16) + Send + Sync + 'static> {
        let master = self.master.try_clone()?;
        Ok(move || terminal::size_of(master.as_raw_fd()).unwrap_or((0, 0)))
    }
}

/// The guest is a terminal's far end already: nothing is echoed or translated on the way.
fn make_raw(path: &Path) -> io::Result<()> {
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    let mut modes = tcgetattr(&slave)?;
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes)?;
    Ok(())
}

/// Makes a link, in place of one that a former gvmm may have left.
fn make_link(path: &Path, link: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("console link {}: {error}", link.display());
    match fs::symlink_metadata(link) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(link).map_err(failed)?,
        Ok(_) => {
            return Err(format!(
                "console link {}: there is a file of that name; choose another path",
                link.display()
            ));
        }
        Err(_) => {}
    }
    symlink(path, link).map_err(failed)
}

impl Door for Pty {
    fn fd(&self) -> BorrowedFd<'_> {
        self.opened.as_fd()
    }

    fn arrived(&mut self) -> io::Result<Option<Arc<OwnedFd>>> {
        // How often it was opened makes no difference: all who have it open share it.
        let mut opened = false;
        while self.opened.read_events().is_ok() {
            opened = true;
        }
        if !opened || self.client.strong_count() > 0 {
            return Ok(None);
        }
        let client = Arc::new(self.master.try_clone()?);
        self.client = Arc::downgrade(&client);
        Ok(Some(client))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let Some(link) = &self.link else { return };
        // Another program may have put its own link there.
        if fs::read_link(link).is_ok_and(|target| target == self.path)
            && let Err(error) = fs::remove_file(link)
        {
            tracing::warn!("console link {} is left over: {error}", link.display());
        }
    }
}
