//! What provides a device: a plugin, in this process or in one of its own, or another program over vhost-user.

use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::host::{Host, Instance, Library, Manifest};
use gvmm_plugin_api::options::Values;
use gvmm_vhost::frontend;
use gvmm_vhost::isolation::child::{Isolated, program};

use super::argument::{DeviceArgument, Isolation};
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
    /// A plugin's file, for a process of its own.
    Isolated {
        file: PathBuf,
        /// Whether there is to be no device in less than a whole sandbox.
        required: bool,
    },
    /// A program that is reached over vhost-user.
    VhostUser,
}

impl Provider {
    /// Finds what an argument names.
    pub fn find(argument: &DeviceArgument) -> Result<Self, String> {
        if argument.plugin == frontend::options::DESCRIPTOR.name {
            let manifest = Manifest::from(&frontend::options::DESCRIPTOR);
            if argument.isolate != Isolation::Off {
                return Err(
                    "device vhost-user: isolate is for plugins, this is another process already".to_owned()
                );
            }
            return Ok(Self { kind: Kind::VhostUser, manifest });
        }
        let file = search::find(&argument.plugin)?;
        let manifest = Manifest::read(&file).map_err(|e| e.to_string())?;
        let kind = match argument.isolate {
            Isolation::Off => Kind::Plugin(file),
            isolate => Kind::Isolated { file, required: isolate == Isolation::Required },
        };
        Ok(Self { kind, manifest })
    }

    /// Whether the device is served by another process, which has to map guest memory.
    pub fn shares_memory(&self) -> bool {
        matches!(self.kind, Kind::VhostUser | Kind::Isolated { .. })
    }

    /// Makes the device with this id. `max_level` is the most detailed log level wanted from it (1 error to 5 trace).
    pub fn create(
        &self,
        id: &str,
        values: &Values,
        host: Arc<dyn Host>,
        max_level: u8,
    ) -> Result<Instance, String> {
        let named = |error: String| format!("device {}: {error}", self.manifest.name);
        match &self.kind {
            Kind::Plugin(file) => {
                let library = Library::load(file, max_level).map_err(|e| {
                    tracing::debug!("{e:?}");
                    e.to_string()
                })?;
                library.create(values, host).map_err(|e| e.to_string())
            }
            Kind::Isolated { file, required } => {
                let isolated = Isolated {
                    program: program().map_err(named)?,
                    plugin: file.clone(),
                    manifest: self.manifest.clone(),
                    values: values.clone(),
                    id: id.to_owned(),
                    required: *required,
                    max_level,
                };
                frontend::isolate(isolated, host).map(Instance::Virtio)
            }
            Kind::VhostUser => frontend::connect(values, host).map(Instance::Virtio).map_err(named),
        }
    }
}
