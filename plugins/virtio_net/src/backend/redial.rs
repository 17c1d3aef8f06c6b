//! Makes a connection that was lost anew.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::{info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::stream::StreamLink;

/// Time between two attempts.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes connections to a back end.
pub(crate) trait Dial: Send {
    /// A new connection; the error names the back end and says what to do.
    fn dial(&mut self) -> Result<OwnedFd, String>;
}

/// A Unix socket that a server listens on.
pub(crate) struct UnixPath(pub(crate) PathBuf);

impl Dial for UnixPath {
    fn dial(&mut self) -> Result<OwnedFd, String> {
        let path = self.0.display();
        UnixStream::connect(&self.0).map(OwnedFd::from).map_err(|error| {
            format!("socket={path}: cannot connect: {error}; start what listens there, such as `passt --socket {path}`")
        })
    }
}

/// The thread that waits for the loss of a connection and makes another one. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Redialer {
    stop: Arc<Event>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Redialer {
    pub(crate) fn start(services: &Services, link: Arc<StreamLink>, dial: Box<dyn Dial>) -> io::Result<Self> {
        let stop = Arc::new(Event::new()?);
        let stopped = stop.clone();
        let thread = services.spawn("net-link", move || keep_connected(&link, dial, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Redialer {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn keep_connected(link: &StreamLink, mut dial: Box<dyn Dial>, stop: &Event) {
    let pause = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::MAX);
    let mut complained = false;
    let mut connected = true;
    loop {
        let timeout = if connected { PollTimeout::NONE } else { pause };
        let input = |event| PollFd::new(event, PollFlags::POLLIN);
        let mut events = [input(stop.as_fd()), input(link.lost().as_fd())];
        // An interrupted wait looks like a timeout: another attempt does no harm.
        let _ = poll(&mut events, timeout);
        if stop.take() {
            return;
        }
        if link.lost().take() {
            connected = false;
            complained = false;
            // Whoever ended the connection gets a moment before the next one.
            continue;
        }
        if connected {
            continue;
        }
        match dial.dial().and_then(|stream| link.attach(stream).map_err(|e| e.to_string())) {
            Ok(()) => {
                info!("the network link is up again");
                connected = true;
            }
            Err(error) if !std::mem::replace(&mut complained, true) => {
                warn!("{error}; trying again every second");
            }
            Err(_) => {}
        }
    }
}
