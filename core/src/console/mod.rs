//! The far ends of serial lines and consoles: the terminal gvmm runs in, pseudo-terminals, sockets and files.
//!
//! A device names an *attachment* in one option value, such as `console=stdio`; [`ConsoleHub::open`] turns it into the
//! pair of descriptors that [`gvmm_plugin_api::services::Console`] describes. Devices write at their own pace: where
//! the far end takes bytes as they come the device holds its descriptor itself, everywhere else a pipe and a thread
//! lie between, so that flow control reaches the guest and nothing is buffered without bound.

mod attachment;
mod client;
mod escape;
mod fatal;
mod history;
mod hub;
mod job_control;
mod keyboard;
mod line;
mod port;
mod pty;
mod pump;
mod server;
mod sink;
mod socket;
mod stdio;
pub mod terminal;

use std::time::Duration;

pub use attachment::{Attachment, AttachmentError, Target};
pub use hub::ConsoleHub;

/// How long the end of gvmm waits for the last output to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
