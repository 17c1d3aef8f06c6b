//! A plugin library that is loaded into this process, for good.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi_stable::library::{LibraryError, lib_header_from_path};
use abi_stable::std_types::{RStr, RString, Tuple2};

use super::instance::Instance;
use super::manifest::{Manifest, PluginError};
use crate::abi::device::RawDeviceBox;
use crate::abi::extension::PANIC;
use crate::abi::host::{Host, export_host};
use crate::abi::root::PluginRootRef;
use crate::options::Values;

/// A loaded plugin. Its code stays in the process until the end; objects it made can be dropped.
#[derive(Clone)]
pub struct Library {
    path: PathBuf,
    manifest: Manifest,
    root: PluginRootRef,
}

impl Library {
    /// Loads a plugin file: reads its manifest, then runs its code.
    ///
    /// `max_level` is the most detailed log level wanted from it (1 error to 5 trace).
    pub fn load(path: &Path, max_level: u8) -> Result<Self, PluginError> {
        let manifest = Manifest::read(path)?;
        let failed = |what: &str, report: String| PluginError::Load {
            path: path.to_owned(),
            what: what.to_owned(),
            report,
        };
        // dlopen searches the library path for a name without a slash.
        let file =
            std::path::absolute(path).map_err(|e| failed("its path cannot be resolved", e.to_string()))?;
        let header = lib_header_from_path(&file).map_err(|e| failed(&cannot_load(&e), e.to_string()))?;
        let root = header.init_root_module::<PluginRootRef>().map_err(|e| {
            failed(
                "its binary interface is not the one of this gvmm: rebuild it with the same gvmm-plugin-api",
                e.to_string(),
            )
        })?;
        root.init()(max_level);
        let told = root.descriptor()();
        if serde_json::from_str::<Manifest>(told.as_str()).ok().as_ref() != Some(&manifest) {
            return Err(failed(
                "its descriptor section and its code disagree: rebuild it",
                told.as_str().to_owned(),
            ));
        }
        Ok(Self { path: path.to_owned(), manifest, root })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes a device.
    pub fn create(&self, values: &Values, host: Arc<dyn Host>) -> Result<Instance, PluginError> {
        self.create_unchecked(values.iter(), host)
    }

    /// As [`Library::create`], with options that nobody has checked: the plugin has to refuse what is wrong itself.
    pub fn create_unchecked<'v>(
        &self,
        options: impl IntoIterator<Item = (&'v str, &'v str)>,
        host: Arc<dyn Host>,
    ) -> Result<Instance, PluginError> {
        let device = self.raw_device(options, host.clone())?;
        Instance::new(device, &self.manifest, host).map_err(|what| self.refused(what))
    }

    /// Has a device of the plugin panic, which must end nothing but the call; the host's log then has the panic's
    /// text, [`Library::PANIC_TEXT`]. A plugin whose panics are not caught ends this process.
    pub fn provoke_panic(&self, values: &Values, host: Arc<dyn Host>) -> Result<(), PluginError> {
        let device = self.raw_device(values.iter(), host)?;
        drop(device.extension(RStr::from(PANIC)));
        Ok(())
    }

    /// What a panic asked for by [`Library::provoke_panic`] says.
    pub const PANIC_TEXT: &str = "asked to panic";

    fn raw_device<'v>(
        &self,
        options: impl IntoIterator<Item = (&'v str, &'v str)>,
        host: Arc<dyn Host>,
    ) -> Result<RawDeviceBox, PluginError> {
        let options = options.into_iter();
        let options =
            options.map(|(name, value)| Tuple2(RString::from(name), RString::from(value))).collect();
        let device = self.root.create()(options, export_host(host)).into_result();
        device.map_err(|what| self.refused(what.into_string()))
    }

    fn refused(&self, what: String) -> PluginError {
        PluginError::Create { device: self.manifest.name.clone(), what }
    }
}

/// One sentence for an error whose own text has many lines.
fn cannot_load(error: &LibraryError) -> String {
    match error {
        LibraryError::OpenError { err, .. } => format!("the library cannot be loaded: {err}"),
        LibraryError::GetSymbolError { .. } => {
            "it has a descriptor, but no code to go with it: build it with export_plugin! as a cdylib"
                .to_owned()
        }
        LibraryError::InvalidAbiHeader(_) | LibraryError::InvalidCAbi { .. } => {
            "its binary interface is not the one of this gvmm: rebuild it with the same gvmm-plugin-api"
                .to_owned()
        }
        _ => "the library cannot be loaded; --log debug shows the full report".to_owned(),
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("path", &self.path).finish_non_exhaustive()
    }
}
