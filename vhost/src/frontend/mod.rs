//! The front end: a virtio device that another program serves, as a device like any other.
//!
//! - [`options`]: what users say of a back end.
//! - [`connector`]: ways to a back end, used again each time that it has gone.
//! - [`device`]: the device, as the transport sees it.
//! - `link`: both sides of the device, and the thread that mends the connection when it breaks.
//! - `peer`: requests to a back end that is connected. `shape`: what it says the device is.
//! - `driver`: what the driver has set up. `bring_up`: telling that to a back end.

mod bring_up;
pub mod connector;
pub mod device;
mod driver;
mod link;
pub mod options;
mod peer;
mod shape;

use std::sync::Arc;

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::virtio::VirtioDevice;

use connector::{Connector, Inherited, SocketPath};
use device::RemoteDevice;
use options::{Options, Settings};

use crate::isolation::child::{Isolated, Supervisor};

/// Makes a device of option values that fit [`options::DESCRIPTOR`].
///
/// # Errors
///
/// What is wrong with the options, or why the back end cannot be used.
pub fn connect(values: &Values, host: Arc<dyn Host>) -> Result<Arc<dyn VirtioDevice>, String> {
    let options = Options::from_values(values).map_err(|e| e.to_string())?;
    let settings = Settings::new(&options).map_err(|e| e.to_string())?;
    let connector: Box<dyn Connector> = match (options.socket, options.fd) {
        (Some(path), _) => Box::new(SocketPath(path)),
        (None, fd) => Box::new(Inherited::new(fd.unwrap_or(-1))?),
    };
    Ok(Arc::new(RemoteDevice::connect(settings, connector, host)?))
}

/// Makes the device of a plugin that runs in a process of its own.
///
/// # Errors
///
/// Why it does not start; for a plugin that makes no virtio device.
pub fn isolate(isolated: Isolated, host: Arc<dyn Host>) -> Result<Arc<dyn VirtioDevice>, String> {
    let name = isolated.manifest.name.clone();
    let named = |error: String| match error.starts_with("device ") || error.starts_with("plugin ") {
        // The process has named it.
        true => error,
        false => format!("device {name}: {error}"),
    };
    let settings = settings_for(&isolated).map_err(named)?;
    let supervisor = Box::new(Supervisor::new(isolated, host.clone()));
    Ok(Arc::new(RemoteDevice::connect(settings, supervisor, host).map_err(named)?))
}

fn settings_for(isolated: &Isolated) -> Result<Settings, String> {
    let device_type = isolated.manifest.virtio_type.ok_or_else(|| {
        format!(
            "isolate: only virtio devices run in a process of their own, and this one is of kind {}: leave it out",
            isolated.manifest.kind
        )
    })?;
    Ok(Settings::of_plugin(device_type))
}

#[cfg(test)]
#[path = "device_test.rs"]
mod device_test;
