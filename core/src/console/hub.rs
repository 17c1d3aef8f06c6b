//! Opens attachments for devices.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::attachment::{Attachment, Target};
use super::keyboard::Leave;
use super::port::{screen, silence};
use super::pty::Pty;
use super::pump::Pump;
use super::server::Server;
use super::sink::Sink;
use super::socket::Socket;
use super::stdio::Stdio;
use super::terminal;

/// All console attachments of a machine.
///
/// Dropping it writes out what devices have shown so far, ends its threads and puts the terminal back.
pub struct ConsoleHub {
    leave: Leave,
    open: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    stdio: Option<Stdio>,
    ptys: Vec<Server>,
    sockets: BTreeMap<PathBuf, Server>,
    pumps: Vec<Pump>,
}

impl ConsoleHub {
    /// A hub that has touched nothing yet. `leave` is called, on a thread of the hub, when the user asks for the end
    /// of the VM by Ctrl-a x; it must not block.
    pub fn new(leave: impl Fn() + Send + Sync + 'static) -> Self {
        Self { leave: Arc::new(leave), open: Mutex::default() }
    }

    /// Opens an attachment, written as in [`Attachment`]. The error is shown to the user.
    pub fn open(&self, attachment: &str) -> Result<Console, String> {
        let attachment: Attachment = attachment.parse().map_err(|error| format!("{error}"))?;
        let log = attachment.log.as_deref();
        match attachment.target {
            Target::Stdio => self.open_stdio(log),
            Target::Pty(link) => self.open_pty(link.as_deref(), log),
            Target::Socket(path) => self.open_socket(path, log),
            Target::File(path) => self.open_file(&path, log),
            Target::Null => self.open_null(log),
        }
    }

    fn open_pty(&self, link: Option<&Path>, log: Option<&Path>) -> Result<Console, String> {
        let failed = |error: std::io::Error| format!("cannot serve a pseudo-terminal: {error}");
        let pty = Pty::new(link)?;
        let size = ConsoleSize::new(pty.size().map_err(failed)?);
        let text = format!("a console is at {}", pty.path().display());
        let server = Server::start(pty, size).map_err(failed)?;
        let console = server.open(log)?;
        self.opened().ptys.push(server);
        terminal::tell(&text);
        Ok(console)
    }

    fn open_socket(&self, path: PathBuf, log: Option<&Path>) -> Result<Console, String> {
        let mut opened = self.opened();
        let server = match opened.sockets.entry(path) {
            Entry::Occupied(server) => server.into_mut(),
            Entry::Vacant(place) => {
                let failed =
                    |error| format!("cannot serve console socket {}: {error}", place.key().display());
                let socket = Socket::listen(place.key()).map_err(|error| error.to_string())?;
                let server = Server::start(socket, ConsoleSize::new(|| (0, 0))).map_err(failed)?;
                place.insert(server)
            }
        };
        server.open(log)
    }

    fn open_file(&self, path: &Path, log: Option<&Path>) -> Result<Console, String> {
        let sinks: Result<Vec<_>, _> = [Some(path), log].into_iter().flatten().map(Sink::file).collect();
        self.output_only(sinks.map_err(|error| error.to_string())?)
    }

    fn open_stdio(&self, log: Option<&Path>) -> Result<Console, String> {
        let mut opened = self.opened();
        let stdio = match opened.stdio.take() {
            Some(stdio) => stdio,
            None => Stdio::new(self.leave.clone())
                .map_err(|error| format!("cannot take the terminal on standard input: {error}"))?,
        };
        opened.stdio.insert(stdio).open(log)
    }

    fn open_null(&self, log: Option<&Path>) -> Result<Console, String> {
        let sink = Sink::file(log.unwrap_or(Path::new("/dev/null")));
        self.output_only(vec![sink.map_err(|error| error.to_string())?])
    }

    /// A console that nobody types at.
    fn output_only(&self, sinks: Vec<Sink>) -> Result<Console, String> {
        let failed = |error: std::io::Error| format!("cannot make a console: {error}");
        let (shown, output) = screen().map_err(failed)?;
        let pump = Pump::start(shown, sinks, |_| {}).map_err(failed)?;
        self.opened().pumps.push(pump);
        let size = ConsoleSize::new(|| (0, 0));
        Ok(Console { input: silence().map_err(failed)?, output, resized: None, size })
    }

    /// Whether there are devices on standard output and none of them has shown anything so far.
    pub fn is_silent(&self) -> bool {
        self.opened().stdio.as_ref().is_some_and(Stdio::is_silent)
    }

    /// Does what dropping the hub does, for a hub that others still hold.
    pub fn close(&self) {
        drop(std::mem::take(&mut *self.opened()));
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for pump in self.pumps.drain(..) {
            pump.finish();
        }
    }
}

impl fmt::Debug for ConsoleHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleHub").finish_non_exhaustive()
    }
}
