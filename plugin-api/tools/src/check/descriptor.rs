//! What a plugin says of itself.

use std::collections::BTreeSet;

use gvmm_plugin_api::host::manifest::{ManifestKind, ManifestOption};
use gvmm_plugin_api::host::{Instance, Manifest};
use gvmm_plugin_api::mmio::MmioLayout;
use gvmm_plugin_api::virtio::{F_VERSION_1, VirtioTraits};

use super::report::Verdict;
use super::subject::Subject;

/// Option names that mean something to gvmm itself.
const TAKEN: [&str; 4] = ["id", "help", "isolate", "transport"];
/// The trap window, in which every register window lies.
const TRAP_WINDOW: u64 = 1 << 30;
/// Most interrupt lines of a device: the number of SPIs of an arm64 interrupt controller (GICv3, 2.2) bounds it.
const MAX_LINES: u32 = 988;
/// Largest size of a queue (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

pub(super) fn descriptor(subject: &Subject) -> Result<Verdict, String> {
    let manifest = subject.library.manifest();
    check_words(manifest)?;
    check_options(manifest)?;
    Ok(Verdict::Pass)
}

pub(super) fn shape(subject: &Subject) -> Result<Verdict, String> {
    match subject.device()?.device {
        Instance::Mmio(device) => check_layout(&device.layout())?,
        Instance::Pci(device) => device.layout().check()?,
        Instance::Virtio(device) => check_traits(subject.library.manifest(), &device.traits())?,
    }
    Ok(Verdict::Pass)
}

fn check_words(manifest: &Manifest) -> Result<(), String> {
    let word = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let parts: Vec<_> = manifest.id.split('.').collect();
    if parts.len() < 2 || !parts.iter().all(|part| word(part)) {
        return Err(format!("id '{}' is not in reverse-domain form, such as org.example.name", manifest.id));
    }
    if !word(&manifest.name) {
        return Err(format!("name '{}': use letters, digits, '-' and '_'", manifest.name));
    }
    let numbers: Vec<_> = manifest.version.split(['.', '-', '+']).take(3).collect();
    if numbers.len() < 3 || numbers.iter().any(|number| number.parse::<u64>().is_err()) {
        return Err(format!("version '{}' is not of the form 1.2.3", manifest.version));
    }
    if manifest.description.is_empty() || manifest.description.contains('\n') {
        return Err("the description is not one line of text".to_owned());
    }
    if manifest.license.is_empty() {
        return Err("there is no licence: set `license` in Cargo.toml".to_owned());
    }
    let extension =
        |id: &&String| id.split_once('/').is_some_and(|(_, revision)| revision.parse::<u32>().is_ok());
    match manifest.requires.iter().find(|id| !extension(id)) {
        Some(id) => Err(format!("requires '{id}', which is not of the form gvmm.name/1")),
        None => Ok(()),
    }
}

fn check_options(manifest: &Manifest) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for option in &manifest.options {
        let name = option.name.as_str();
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!("option '{name}': use lower-case letters, digits and '-'"));
        }
        if TAKEN.contains(&name) {
            return Err(format!("option '{name}' means something to gvmm itself: choose another name"));
        }
        if !names.insert(name) {
            return Err(format!("option '{name}' is there twice"));
        }
        if option.help.trim().is_empty() {
            return Err(format!("option '{name}' has no help: write a doc comment above it"));
        }
        check_range(option)?;
    }
    // With every default in place: the schema itself must accept it.
    let defaults = manifest.options.iter().filter_map(|o| Some((o.name.as_str(), o.default.as_deref()?)));
    let optional = Manifest {
        options: manifest.options.iter().map(|o| ManifestOption { required: false, ..o.clone() }).collect(),
        ..manifest.clone()
    };
    optional.check(defaults).map(|_| ()).map_err(|e| format!("a default does not fit its option: {e}"))
}

fn check_range(option: &ManifestOption) -> Result<(), String> {
    match &option.kind {
        ManifestKind::Integer { min, max } | ManifestKind::Size { min, max } if min > max => {
            Err(format!("option '{}': no number is from {min} to {max}", option.name))
        }
        ManifestKind::Choice { choices } if choices.is_empty() => {
            Err(format!("option '{}' has nothing to choose from", option.name))
        }
        _ => Ok(()),
    }
}

fn check_layout(layout: &MmioLayout) -> Result<(), String> {
    if layout.windows.is_empty() {
        return Err("a device with registers has no register window".to_owned());
    }
    if let Some(size) = layout.windows.iter().find(|size| !(1..=TRAP_WINDOW).contains(*size)) {
        return Err(format!("a register window has {size:#x} bytes; 1 to {TRAP_WINDOW:#x} are possible"));
    }
    match layout.lines > MAX_LINES {
        true => Err(format!("{} interrupt lines are more than a machine has", layout.lines)),
        false => Ok(()),
    }
}

fn check_traits(manifest: &Manifest, traits: &VirtioTraits) -> Result<(), String> {
    if manifest.virtio_type != Some(traits.device_type) {
        let said = manifest.virtio_type.unwrap_or(0);
        return Err(format!(
            "the descriptor says device type {said}, the device is of type {}",
            traits.device_type
        ));
    }
    if traits.features & F_VERSION_1 == 0 {
        return Err("the device does not offer VIRTIO_F_VERSION_1: add COMMON_FEATURES".to_owned());
    }
    if traits.queue_sizes.is_empty() {
        return Err("the device has no queue".to_owned());
    }
    let good = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
    match traits.queue_sizes.iter().find(|size| !good(size)) {
        Some(size) => Err(format!("queue size {size} is not a power of two up to {MAX_QUEUE_SIZE}")),
        None => Ok(()),
    }
}
