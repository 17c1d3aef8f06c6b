//! The surroundings of a back end that a gvmm has started.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::host::Surroundings;
use crate::isolation::reports::{Answer, Packets, Report};

/// Reports to the gvmm above, and asks it for consoles.
#[derive(Debug, Clone)]
pub(super) struct Supervised(Arc<Mutex<Packets>>);

impl Supervised {
    /// With the socket that gvmm has given.
    pub(super) fn new(packets: Packets) -> Self {
        Self(Arc::new(Mutex::new(packets)))
    }

    /// Reports; without a gvmm to report to, its connection is at an end as well, and so is the program.
    pub(super) fn report(&self, report: &Report) {
        if let Err(error) = self.lock().send(report, &[]) {
            tracing::debug!("a report is lost: {error}");
        }
    }

    fn ask(&self, report: &Report) -> Result<(Answer, Vec<OwnedFd>), String> {
        let packets = self.lock();
        packets.send(report, &[]).map_err(|e| format!("gvmm cannot be asked: {e}"))?;
        match packets.receive() {
            Ok(Some((Answer::Refused(why), _))) => Err(why),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("gvmm has gone".to_owned()),
            Err(error) => Err(format!("gvmm does not answer: {error}")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Packets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Surroundings for Supervised {
    fn log(&self, level: u8, target: &str, text: &str) {
        self.report(&Report::Log(level, target.to_owned(), text.to_owned()));
    }

    fn device_failed(&self, reason: &str) {
        self.report(&Report::Failed(reason.to_owned()));
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        let (_, fds) = self.ask(&Report::OpenConsole(attachment.to_owned()))?;
        let mut fds = fds.into_iter();
        let (Some(input), Some(output)) = (fds.next(), fds.next()) else {
            return Err(format!("gvmm gave no descriptors for console '{attachment}'"));
        };
        let (asked, attachment) = (self.clone(), attachment.to_owned());
        let size = move || match asked.ask(&Report::ConsoleSize(attachment.clone())) {
            Ok((Answer::Size(columns, rows), _)) => (columns, rows),
            _ => (0, 0),
        };
        Ok(Console { input, output, resized: fds.next().map(Event::from), size: ConsoleSize::new(size) })
    }
}
