//! What the host offers a device across the boundary. Frozen; growth through [`RawHost::extension`].
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RArc, ROption, RResult, RStr, RString};

use super::extension::{self, Extension};
use crate::interrupt::Event;
use crate::services::{Console, ConsoleSize, HostServices};

/// The host, as one device sees it.
#[sabi_trait]
pub trait RawHost: Send + Sync {
    /// A log line of the device: level (1 error to 5 trace), target, text.
    fn log(&self, level: u8, target: RStr<'_>, text: RStr<'_>);
    /// See [`HostServices::config_changed`].
    fn config_changed(&self);
    /// See [`HostServices::device_failed`].
    fn device_failed(&self, reason: RStr<'_>);
    /// An interface of the host, by id.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<Extension>;
}

/// A shared [`RawHost`].
pub type RawHostArc = RawHost_TO<'static, RArc<()>>;

/// The extension `gvmm.console/1`.
#[sabi_trait]
pub trait RawConsoleHost: Send + Sync {
    /// See [`HostServices::open_console`].
    fn open(&self, attachment: RStr<'_>) -> RResult<RawConsole, RString>;
    /// Columns in the low half, rows in the high half, of an attachment.
    #[sabi(last_prefix_field)]
    fn size(&self, attachment: RStr<'_>) -> u32;
}

/// A shared [`RawConsoleHost`].
pub type RawConsoleHostArc = RawConsoleHost_TO<'static, RArc<()>>;

/// A [`Console`]; the descriptors change hands.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawConsole {
    input: i32,
    output: i32,
    /// -1 when the size never changes.
    resized: i32,
}

/// The plugin's side: [`HostServices`] by a host across the boundary.
pub(crate) struct HostProxy(pub(crate) Arc<RawHostArc>);

impl HostServices for HostProxy {
    fn config_changed(&self) {
        self.0.config_changed();
    }

    fn device_failed(&self, reason: &str) {
        self.0.device_failed(RStr::from(reason));
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        let ROption::RSome(found) = self.0.extension(RStr::from(extension::CONSOLE)) else {
            return Err(format!("this host offers no consoles ({})", extension::CONSOLE));
        };
        let host: RawConsoleHostArc = found.open()?;
        let raw = host.open(RStr::from(attachment)).into_result().map_err(RString::into_string)?;
        let name = attachment.to_owned();
        let size = move || {
            let size = host.size(RStr::from(name.as_str()));
            (size as u16, (size >> 16) as u16)
        };
        // SAFETY: the host gives the descriptors away with the answer.
        let owned = |fd: i32| (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        let (input, output, resized) = (owned(raw.input), owned(raw.output), owned(raw.resized));
        match (input, output) {
            (Some(input), Some(output)) => {
                Ok(Console { input, output, resized: resized.map(Event::from), size: ConsoleSize::new(size) })
            }
            _ => Err(format!("the host gave no descriptors for console '{attachment}'")),
        }
    }
}

/// What a host gives to a plugin for one device.
pub trait Host: HostServices {
    /// A log line of the device: level (1 error to 5 trace), target, text.
    fn log(&self, level: u8, target: &str, text: &str);
}

/// The host's side: a [`Host`] for the boundary. The host's own panics are caught, since they must not reach the
/// plugin's code.
struct HostExport(Arc<dyn Host>, ConsoleSizes);

/// Sizes of the consoles opened so far, by attachment.
type ConsoleSizes = Arc<std::sync::Mutex<std::collections::BTreeMap<String, ConsoleSize>>>;

/// Makes a host usable across the boundary.
pub fn export_host(host: Arc<dyn Host>) -> RawHostArc {
    RawHost_TO::from_ptr(RArc::new(HostExport(host, ConsoleSizes::default())), sabi_trait::TD_Opaque)
}

impl RawHost for HostExport {
    fn log(&self, level: u8, target: RStr<'_>, text: RStr<'_>) {
        let _ = super::contain(crate::log::Scope::NONE, || self.0.log(level, target.as_str(), text.as_str()));
    }

    fn config_changed(&self) {
        let _ = super::contain(crate::log::Scope::NONE, || self.0.config_changed());
    }

    fn device_failed(&self, reason: RStr<'_>) {
        let _ = super::contain(crate::log::Scope::NONE, || self.0.device_failed(reason.as_str()));
    }

    fn extension(&self, id: RStr<'_>) -> ROption<Extension> {
        if id.as_str() != extension::CONSOLE {
            return ROption::RNone;
        }
        let console = RArc::new(HostExport(self.0.clone(), self.1.clone()));
        ROption::RSome(Extension::wrap(RawConsoleHost_TO::from_ptr(console, sabi_trait::TD_Opaque)))
    }
}

impl RawConsoleHost for HostExport {
    fn open(&self, attachment: RStr<'_>) -> RResult<RawConsole, RString> {
        let opened = super::contain(crate::log::Scope::NONE, || self.0.open_console(attachment.as_str()));
        match opened.and_then(|result| result) {
            Err(error) => RResult::RErr(RString::from(error)),
            Ok(console) => {
                let mut sizes = self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                sizes.insert(attachment.as_str().to_owned(), console.size);
                let resized = console.resized.map_or(-1, |event| OwnedFd::from(event).into_raw_fd());
                debug_assert!(console.input.as_raw_fd() >= 0);
                let (input, output) = (console.input.into_raw_fd(), console.output.into_raw_fd());
                RResult::ROk(RawConsole { input, output, resized })
            }
        }
    }

    fn size(&self, attachment: RStr<'_>) -> u32 {
        let sizes = self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (columns, rows) = sizes.get(attachment.as_str()).map_or((0, 0), ConsoleSize::get);
        u32::from(columns) | (u32::from(rows) << 16)
    }
}
