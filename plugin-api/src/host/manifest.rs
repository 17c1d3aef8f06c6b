//! The descriptor of a plugin, read from its file without running it.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use object::elf::{EM_AARCH64, EM_X86_64};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection, ReadCache, ReadRef};
use serde::{Deserialize, Serialize};

use crate::abi::extension::OFFERED;
use crate::descriptor::{API_VERSION, Descriptor, Kind, SECTION};
use crate::options::{KindRef, OptionError, OptionKind, OptionSpec, Presence, SpecRef, Values};

/// Largest plugin file that is read.
const MAX_FILE: u64 = 256 << 20;
/// Largest descriptor that is read.
const MAX_DESCRIPTOR: u64 = 1 << 20;

/// Why a plugin was refused. The text names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file cannot be opened or read.
    #[error("plugin {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not a plugin, or one for another machine.
    #[error("plugin {}: {what}", path.display())]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        what: String,
    },
    /// The plugin speaks another version of the interface.
    #[error(
        "plugin {}: it was built for plugin API {}.{}, this gvmm offers {}.{}: {}",
        path.display(), plugin.0, plugin.1, API_VERSION.0, API_VERSION.1,
        if *plugin > API_VERSION { "update gvmm" } else { "rebuild the plugin" }
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version the plugin was built for.
        plugin: (u16, u16),
    },
    /// The plugin cannot do without an interface that this host has not.
    #[error("plugin {}: it needs the interface {id}, which this gvmm does not offer: update gvmm", path.display())]
    Requires {
        /// The file.
        path: PathBuf,
        /// Id of the interface.
        id: String,
    },
    /// Loading failed although the descriptor fits.
    #[error("plugin {}: {what}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What failed, in one sentence.
        what: String,
        /// The full report of the loader.
        report: String,
    },
    /// The options do not fit the schema.
    #[error("device {device}: {error}; '--device {device},help' lists all options")]
    Options {
        /// Name of the plugin.
        device: String,
        /// What is wrong.
        error: OptionError,
    },
    /// The plugin refused to make a device.
    #[error("device {device}: {what}")]
    Create {
        /// Name of the plugin.
        device: String,
        /// The plugin's own words.
        what: String,
    },
}

/// What a plugin says of itself; see [`Descriptor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the plugin interface that it needs.
    pub api: (u16, u16),
    /// Unique id.
    pub id: String,
    /// Short name.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// Who makes it.
    pub vendor: String,
    /// Where to read more.
    pub url: String,
    /// One sentence.
    pub description: String,
    /// SPDX licence expression.
    pub license: String,
    /// Kind of device: `mmio`, `virtio` or `pci`.
    pub kind: String,
    /// Virtio device type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtio_type: Option<u32>,
    /// Host extensions it needs.
    pub requires: Vec<String>,
    /// System calls beyond the common ones.
    pub syscalls: Vec<String>,
    /// Schema of its options.
    pub options: Vec<ManifestOption>,
}

/// An option in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestOption {
    /// Name.
    pub name: String,
    /// What it does.
    pub help: String,
    /// Whether it must be given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// The value when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Type and range.
    #[serde(flatten)]
    pub kind: ManifestKind,
}

/// Type of an option in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are those of OptionKind")]
pub enum ManifestKind {
    Text,
    Path { access: String },
    Integer { min: u64, max: u64 },
    Size { min: u64, max: u64 },
    Flag,
    Fd,
    Choice { choices: Vec<String> },
}

impl Manifest {
    /// Reads the descriptor from a plugin file. None of the file's code runs.
    pub fn read(path: &Path) -> Result<Self, PluginError> {
        let refused = |what: String| PluginError::NotAPlugin { path: path.to_owned(), what };
        let open = |error| PluginError::Open { path: path.to_owned(), error };
        let file = File::open(path).map_err(open)?;
        if file.metadata().map_err(open)?.len() > MAX_FILE {
            return Err(refused("the file is larger than 256 MiB, which no plugin is".to_owned()));
        }
        let pieces = ReadCache::new(file);
        let json = section(&pieces).map_err(refused)?;
        let api: ApiOnly =
            serde_json::from_slice(json).map_err(|e| refused(format!("broken descriptor: {e}")))?;
        if api.api.0 != API_VERSION.0 || api.api.1 > API_VERSION.1 {
            return Err(PluginError::Version { path: path.to_owned(), plugin: api.api });
        }
        let manifest: Self =
            serde_json::from_slice(json).map_err(|e| refused(format!("broken descriptor: {e}")))?;
        match manifest.requires.iter().find(|id| !OFFERED.contains(&id.as_str())) {
            Some(id) => Err(PluginError::Requires { path: path.to_owned(), id: id.clone() }),
            None => Ok(manifest),
        }
    }

    /// Checks option values against the schema and fills in defaults.
    pub fn check<'v>(
        &self,
        given: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<Values, PluginError> {
        let words: Vec<Vec<&str>> = self.options.iter().map(ManifestOption::choices).collect();
        let specs: Vec<SpecRef<'_>> =
            self.options.iter().zip(&words).map(|(o, words)| o.as_ref(words)).collect();
        Values::check_refs(&specs, given)
            .map_err(|error| PluginError::Options { device: self.name.clone(), error })
    }

    /// The options as a text for people.
    pub fn help(&self) -> String {
        let mut text = format!("{} {}: {}\n", self.name, self.version, self.description);
        for option in &self.options {
            let words = option.choices();
            let spec = option.as_ref(&words);
            let state = match (&option.default, option.required) {
                (Some(value), _) => format!("default {value}"),
                (None, true) => "required".to_owned(),
                (None, false) => "optional".to_owned(),
            };
            let help: Vec<&str> = option.help.split_whitespace().collect();
            let (name, expected, help) = (&option.name, spec.kind.expected(), help.join(" "));
            // Writing to a string cannot fail.
            let _ = write!(text, "  {name}=<{expected}>  ({state})\n      {help}\n");
        }
        if self.options.is_empty() {
            text.push_str("  no options\n");
        }
        text
    }
}

impl From<&Descriptor> for Manifest {
    fn from(descriptor: &Descriptor) -> Self {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let (kind, virtio_type) = match descriptor.kind {
            Kind::Mmio => ("mmio", None),
            Kind::Virtio(number) => ("virtio", Some(number)),
            Kind::Pci => ("pci", None),
        };
        Self {
            api: descriptor.kind.api(),
            id: descriptor.id.to_owned(),
            name: descriptor.name.to_owned(),
            version: descriptor.version.to_owned(),
            vendor: descriptor.vendor.to_owned(),
            url: descriptor.url.to_owned(),
            description: descriptor.description.to_owned(),
            license: descriptor.license.to_owned(),
            kind: kind.to_owned(),
            virtio_type,
            requires: owned(descriptor.requires),
            syscalls: owned(descriptor.syscalls),
            options: descriptor.options.iter().map(ManifestOption::from).collect(),
        }
    }
}

impl From<&OptionSpec> for ManifestOption {
    fn from(spec: &OptionSpec) -> Self {
        let kind = match spec.kind {
            OptionKind::Text => ManifestKind::Text,
            OptionKind::Path(access) => ManifestKind::Path { access: access.word().to_owned() },
            OptionKind::Integer { min, max } => ManifestKind::Integer { min, max },
            OptionKind::Size { min, max } => ManifestKind::Size { min, max },
            OptionKind::Flag => ManifestKind::Flag,
            OptionKind::Fd => ManifestKind::Fd,
            OptionKind::Choice(words) => {
                ManifestKind::Choice { choices: words.iter().map(|word| (*word).to_owned()).collect() }
            }
        };
        Self {
            name: spec.name.to_owned(),
            help: spec.help.trim().to_owned(),
            required: spec.presence == Presence::Required,
            default: match spec.presence {
                Presence::Default(value) => Some(value.to_owned()),
                Presence::Required | Presence::Optional => None,
            },
            kind,
        }
    }
}

impl ManifestOption {
    fn choices(&self) -> Vec<&str> {
        match &self.kind {
            ManifestKind::Choice { choices } => choices.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    fn as_ref<'a>(&'a self, words: &'a [&'a str]) -> SpecRef<'a> {
        let kind = match self.kind {
            ManifestKind::Text => KindRef::Text,
            ManifestKind::Path { .. } => KindRef::Path,
            ManifestKind::Integer { min, max } => KindRef::Integer(min, max),
            ManifestKind::Size { min, max } => KindRef::Size(min, max),
            ManifestKind::Flag => KindRef::Flag,
            ManifestKind::Fd => KindRef::Fd,
            ManifestKind::Choice { .. } => KindRef::Choice(words),
        };
        SpecRef { name: &self.name, kind, required: self.required, default: self.default.as_deref() }
    }
}

/// The part of a descriptor that every version has.
#[derive(Deserialize)]
struct ApiOnly {
    api: (u16, u16),
}

/// The descriptor's bytes in an ELF file for this machine. Little more than these is read of the file.
fn section<'data>(file: impl ReadRef<'data>) -> Result<&'data [u8], String> {
    if file.read_bytes_at(0, 4) != Ok(b"\x7fELF") {
        return Err("not an ELF shared library; give the path of a plugin's .so file".to_owned());
    }
    let elf = ElfFile64::<object::Endianness, _>::parse(file)
        .map_err(|e| format!("not a 64-bit ELF shared library: {e}"))?;
    let machine = elf.elf_header().e_machine(elf.endian());
    let ours = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };
    if machine != ours {
        let name = |machine| match machine {
            EM_AARCH64 => "aarch64".to_owned(),
            EM_X86_64 => "x86-64".to_owned(),
            other => format!("ELF machine {other}"),
        };
        return Err(format!(
            "built for {}, but this gvmm runs on {}: build the plugin for this machine",
            name(machine),
            name(ours)
        ));
    }
    let section = elf.section_by_name(SECTION).ok_or_else(|| {
        format!("no gvmm plugin: it has no {SECTION} section; a plugin is built with export_plugin!")
    })?;
    if section.size() > MAX_DESCRIPTOR {
        return Err(format!("broken descriptor: {} bytes long", section.size()));
    }
    section.data().map_err(|e| format!("broken descriptor section: {e}"))
}
