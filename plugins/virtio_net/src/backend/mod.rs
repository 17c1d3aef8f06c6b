//! Where frames come from and go to.

mod announce;
pub(crate) mod descriptor;
pub(crate) mod packet;
pub(crate) mod passt;
pub(crate) mod redial;
pub(crate) mod stream;
pub(crate) mod tap;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::Options;
use crate::backend::descriptor::Descriptor;
use crate::backend::packet::PacketPort;
use crate::backend::passt::Passt;
use crate::backend::redial::{Dial, UnixPath};
use crate::backend::tap::{Tap, TapError};

/// Why a back end cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    #[error("no back end: add one of tap=NAME, fd=N, socket=PATH or user")]
    None,
    #[error("{0} and {1} are two back ends: leave one out")]
    Two(&'static str, &'static str),
    #[error("option '{0}' is for the back end 'user' alone")]
    UserOnly(&'static str),
    #[error("option 'queues': a descriptor is one pair of queues; leave it out or use tap=NAME")]
    OnePair,
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(
        "fd={0}: {1}; give gvmm an open tap or a connected socket, as in `gvmm ... fd=3 3<>/dev/...` of a shell"
    )]
    Fd(i32, String),
    #[error("{0}")]
    Dial(String),
    #[error("cannot set up the back end: {0}")]
    Io(#[from] io::Error),
}

/// A back end, opened.
pub(crate) enum Backend {
    /// A frame a read, one descriptor for each pair of queues.
    Packets {
        ports: Vec<Arc<PacketPort>>,
        /// The interface, if it is a tap.
        tap: Option<Arc<Tap>>,
    },
    /// Frames on a stream, and how to get another stream when this one ends.
    Stream(std::os::fd::OwnedFd, Option<Box<dyn Dial>>),
}

/// What the options name.
pub(crate) enum Choice<'a> {
    Tap(&'a str),
    Fd(i32),
    Socket(&'a PathBuf),
    User,
}

impl<'a> Choice<'a> {
    /// The one back end of the options.
    pub(crate) fn of(options: &'a Options) -> Result<Self, BackendError> {
        let given = [
            options.tap.as_deref().map(|name| ("tap", Self::Tap(name))),
            options.fd.map(|fd| ("fd", Self::Fd(fd))),
            options.socket.as_ref().map(|path| ("socket", Self::Socket(path))),
            options.user.then_some(("user", Self::User)),
        ];
        let mut given = given.into_iter().flatten();
        let (name, choice) = given.next().ok_or(BackendError::None)?;
        if let Some((other, _)) = given.next() {
            return Err(BackendError::Two(name, other));
        }
        for (option, value) in [("tcp", &options.tcp), ("udp", &options.udp)] {
            if value.is_some() && !matches!(choice, Self::User) {
                return Err(BackendError::UserOnly(option));
            }
        }
        Ok(choice)
    }

    /// A text that tells this back end from others on the host.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Tap(name) => format!("tap {name}"),
            Self::Fd(fd) => descriptor::interface_name(*fd)
                .map_or_else(|| format!("fd {fd}"), |name| format!("tap {name}")),
            Self::Socket(path) => format!("socket {}", path.display()),
            Self::User => "user".to_owned(),
        }
    }

    /// Opens it with so many pairs of queues.
    pub(crate) fn open(&self, options: &Options) -> Result<Backend, BackendError> {
        match self {
            Self::Tap(name) => {
                let (tap, ports) = Tap::open(name, options.queues, options.offload)?;
                Ok(Backend::Packets { ports, tap: Some(Arc::new(tap)) })
            }
            Self::Fd(fd) => {
                if options.queues > 1 {
                    return Err(BackendError::OnePair);
                }
                let failed = |text| BackendError::Fd(*fd, text);
                match descriptor::open(*fd, options.offload).map_err(failed)? {
                    Descriptor::Packets(port, tap) => {
                        Ok(Backend::Packets { ports: vec![Arc::new(port)], tap: tap.map(Arc::new) })
                    }
                    Descriptor::Stream(stream) => Ok(Backend::Stream(stream, None)),
                }
            }
            Self::Socket(path) => dialed(UnixPath((*path).clone())),
            Self::User => dialed(Passt::new(options)),
        }
    }
}

fn dialed(mut dial: impl Dial + 'static) -> Result<Backend, BackendError> {
    let stream = dial.dial().map_err(BackendError::Dial)?;
    Ok(Backend::Stream(stream, Some(Box::new(dial))))
}

/// Has an epoll report once that a descriptor takes more.
pub(crate) fn watch_writable(epoll: &Epoll, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut event = EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, 0);
    match epoll.modify(fd, &mut event) {
        Err(Errno::ENOENT) => Ok(epoll.add(fd, event)?),
        other => Ok(other?),
    }
}
