//! The plugin under test and the devices it makes.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use gvmm_plugin_api::host::argument::DeviceArgument;
use gvmm_plugin_api::host::manifest::{ManifestKind, ManifestOption};
use gvmm_plugin_api::host::{Host, Instance, Library, search};
use gvmm_plugin_api::mmio::MmioDevice;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::virtio::VirtioDevice;
use tempfile::TempDir;

use super::bench::Recorder;
use super::random::Random;
use super::registers_of::RegisterDevice;

/// Size of a file that is made for an option.
const FILE_SIZE: u64 = 1 << 20;
/// An option value that stands for a Unix socket on which somebody listens.
const SOCKET: &str = "{socket}";
/// Log level asked for: enough for a panic's text.
const LOG_LEVEL: u8 = 2;

/// A loaded plugin and the options of its devices.
pub(super) struct Subject {
    pub(super) library: Library,
    values: Values,
    /// Holds the files that were made for options.
    _folder: TempDir,
    made_files: Vec<String>,
    seed: u64,
}

/// A device of a kind with its host, unless it is of another kind.
type Found<D> = Result<Option<(Arc<Recorder>, Arc<D>)>, String>;

/// A device with the host that listens to it.
pub(super) struct Made {
    pub(super) host: Arc<Recorder>,
    pub(super) device: Instance,
}

impl Subject {
    /// Loads the plugin and completes its options.
    pub(super) fn load(device: &DeviceArgument, seed: u64) -> Result<Self, String> {
        let file = search::find(&device.plugin)?;
        let library = Library::load(&file, LOG_LEVEL).map_err(|e| e.to_string())?;
        let folder = tempfile::tempdir().map_err(|e| format!("cannot make a folder: {e}"))?;
        let mut made_files = Vec::new();
        let mut given: Vec<(String, String)> = device.options.clone();
        for (name, value) in given.iter_mut().filter(|(_, value)| value == SOCKET) {
            *value = folder.path().join(&*name).display().to_string();
            listen(value)?;
        }
        for option in &library.manifest().options {
            if !option.required || given.iter().any(|(name, _)| *name == option.name) {
                continue;
            }
            let value = suitable(option, folder.path())?;
            if matches!(&option.kind, ManifestKind::Path { access } if access.starts_with("read")) {
                made_files.push(value.clone());
            }
            given.push((option.name.clone(), value));
        }
        let pairs = given.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let values = library.manifest().check(pairs).map_err(|e| e.to_string())?;
        let subject = Self { library, values, _folder: folder, made_files, seed };
        subject.renew_files()?;
        Ok(subject)
    }

    /// Empties the files that were made for options.
    pub(super) fn renew_files(&self) -> Result<(), String> {
        for name in &self.made_files {
            let file = fs::File::create(name).and_then(|file| file.set_len(FILE_SIZE));
            file.map_err(|e| format!("cannot make {name}: {e}"))?;
        }
        Ok(())
    }

    /// Options that the plugin accepts.
    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    /// The random numbers of this run.
    pub(super) fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// Makes a device.
    pub(super) fn device(&self) -> Result<Made, String> {
        let host = Arc::new(Recorder::default());
        let device = self.device_for(host.clone())?;
        Ok(Made { host, device })
    }

    /// Makes a device for a host of the caller's.
    pub(super) fn device_for(&self, host: Arc<dyn Host>) -> Result<Instance, String> {
        self.library.create(&self.values, host).map_err(|e| e.to_string())
    }

    /// Makes a device and takes it for one with registers; `None` if it is none.
    pub(super) fn mmio(&self) -> Found<dyn MmioDevice> {
        let made = self.device()?;
        Ok(match made.device {
            Instance::Mmio(device) => Some((made.host, device)),
            Instance::Virtio(_) | Instance::Pci(_) => None,
        })
    }

    /// Makes a device and takes it for one with registers of its own, of whichever kind; `None` if it has none.
    pub(super) fn registers(&self) -> Result<Option<(Arc<Recorder>, RegisterDevice)>, String> {
        let made = self.device()?;
        Ok(RegisterDevice::of(&made.device).map(|device| (made.host, device)))
    }

    /// Makes a device and takes it for a virtio device; `None` if it is none.
    pub(super) fn virtio(&self) -> Found<dyn VirtioDevice> {
        let made = self.device()?;
        Ok(match made.device {
            Instance::Virtio(device) => Some((made.host, device)),
            Instance::Mmio(_) | Instance::Pci(_) => None,
        })
    }
}

/// Listens on a Unix socket for the rest of the process, and swallows what it is sent.
fn listen(path: &str) -> Result<(), String> {
    let listener = UnixListener::bind(path).map_err(|e| format!("socket {path}: {e}"))?;
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut connection: UnixStream = connection;
            std::thread::spawn(move || io::copy(&mut connection, &mut io::sink()));
        }
    });
    Ok(())
}

/// A value for an option of which nothing but the type is known.
fn suitable(option: &ManifestOption, folder: &Path) -> Result<String, String> {
    let name = &option.name;
    Ok(match &option.kind {
        ManifestKind::Path { access } => {
            let path = folder.join(name).display().to_string();
            if access == "connect" {
                listen(&path)?;
            }
            path
        }
        ManifestKind::Integer { min, .. } | ManifestKind::Size { min, .. } => min.to_string(),
        ManifestKind::Flag => "off".to_owned(),
        ManifestKind::Choice { choices } => choices.first().cloned().unwrap_or_default(),
        ManifestKind::Text | ManifestKind::Fd => {
            return Err(format!("option '{name}' is required: add ,{name}=VALUE to the plugin"));
        }
    })
}
