//! What provides a device: a plugin in this process, or another program over vhost-user.

use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::host::{Host, Instance, Library, Manifest};
use gvmm_plugin_api::options::Values;
use gvmm_vhost::frontend;

use super::argument::DeviceArgument;
use super::search;

/// Provides a device. It has been found and described; none of its code has run.
#[derive(Debug, Clone)]
pub struct Provider {
    kind: Kind,
    /// What it says of itself.
    pub manifest: Manifest,
}

#[derive(Debug, Clone)]
enum Kind {
    /// A plugin's file, for this process.
    Plugin(PathBuf),
    /// A program that is reached over vhost-user.
    VhostUser,
}

impl Provider {
    /// Finds what an argument names.
    pub fn find(argument: &DeviceArgument) -> Result<Self, String> {
        if argument.plugin == frontend::options::DESCRIPTOR.name {
            let manifest = Manifest::from(&frontend::options::DESCRIPTOR);
            return Ok(Self { kind: Kind::VhostUser, manifest });
        }
        let file = search::find(&argument.plugin)?;
        let manifest = Manifest::read(&file).map_err(|e| e.to_string())?;
        Ok(Self { kind: Kind::Plugin(file), manifest })
    }

    /// Whether the device is served by another process, which has to map guest memory.
    pub fn shares_memory(&self) -> bool {
        matches!(self.kind, Kind::VhostUser)
    }

    /// Makes the device. `max_level` is the most detailed log level wanted from it (1 error to 5 trace).
    pub fn create(&self, values: &Values, host: Arc<dyn Host>, max_level: u8) -> Result<Instance, String> {
        match &self.kind {
            Kind::Plugin(file) => {
                let library = Library::load(file, max_level).map_err(|e| {
                    tracing::debug!("{e:?}");
                    e.to_string()
                })?;
                library.create(values, host).map_err(|e| e.to_string())
            }
            Kind::VhostUser => {
                let device = frontend::connect(values, host);
                device.map(Instance::Virtio).map_err(|e| format!("device {}: {e}", self.manifest.name))
            }
        }
    }
}
