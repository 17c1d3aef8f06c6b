//! Plugins that were built when a plugin API was published are taken by today's host, and do what they did.
//!
//! `frozen/0.1` and `frozen/0.2` have the types that such a plugin has inside. Nothing of it is ever changed: if this test
//! fails, the change that made it fail is wrong.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use gvmm_plugin_api::host::{Instance, Library};
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::pci::{Bar, Capability, Identity, Interrupts, PciLayout};
use gvmm_plugin_api::testing::{FakeHost, FakeMemory, QueueDriver};
use gvmm_plugin_api::virtio::QueueState;

const PROMISE: &str = "\
the promise of docs/plugins/abi.md is broken, \"A plugin built for API 0.1 is loaded by every gvmm that offers 0.x\". Types \
that were published do not change: undo that, and put what is new into an extension of its own";

/// The examples of each version.
const EXAMPLES: [(&str, &[&str]); 2] = [("0.1", &["registers", "queues", "nodes"]), ("0.2", &["function"])];

/// Builds a plugin as it was built then; with the versions that are here already, since nothing is fetched.
fn frozen(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (version, examples) = EXAMPLES.iter().find(|(_, examples)| examples.contains(&name)).unwrap();
    // Cargo writes its lock file beside the manifest.
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("frozen-{version}-{name}"));
    for folder in ["src", "examples"] {
        fs::create_dir_all(copy.join(folder)).unwrap();
    }
    let examples = examples.iter().map(|name| format!("examples/{name}.rs"));
    for file in examples.chain(["Cargo.toml", "src/lib.rs"].map(str::to_owned)) {
        fs::copy(here.join("frozen").join(version).join(&file), copy.join(&file)).unwrap();
    }
    fs::copy(here.join("../Cargo.lock"), copy.join("Cargo.lock")).unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--offline", "--quiet", "--example", name]).current_dir(&copy);
    assert!(cargo.env("CARGO_TARGET_DIR", target).status().unwrap().success());
    target.join("debug/examples").join(format!("lib{name}.so"))
}

fn device(name: &str) -> (Arc<FakeHost>, Instance) {
    let library = Library::load(&frozen(name), 5).unwrap_or_else(|error| panic!("{PROMISE}: {error:?}"));
    let host = Arc::new(FakeHost::default());
    let values = library.manifest().check([]).unwrap_or_else(|error| panic!("{PROMISE}: {error}"));
    let device = library.create(&values, host.clone());
    (host, device.unwrap_or_else(|error| panic!("{PROMISE}: {error}")))
}

#[test]
fn registers_of_api_0_1_are_taken() {
    let (host, Instance::Mmio(device)) = device("registers") else { panic!("{PROMISE}: no MMIO device") };
    assert_eq!((device.layout().windows, device.layout().lines), (vec![0x1000], 1), "{PROMISE}");
    let node = device.node();
    assert_eq!((node.name.as_str(), node.properties.len()), ("kept", 1), "{PROMISE}");
    assert!(device.nodes_below().is_empty() && device.nodes_beside().is_empty(), "{PROMISE}");
    device.start(vec![Interrupt::new(Event::new().unwrap())]).unwrap();
    assert_eq!(device.read(0, 0, Width::Word), Ok(7), "{PROMISE}");
    device.write(0, 0, Width::Word, 0x1234_5678).unwrap();
    assert_eq!(device.read(0, 0, Width::Word), Ok(0x1234_5678), "{PROMISE}");
    assert_eq!(device.read(0, 0, Width::Half), Err(AccessError::Width), "{PROMISE}");
    assert_eq!(device.read(0, 8, Width::Word), Err(AccessError::NoRegister), "{PROMISE}");
    assert_eq!(host.log_lines(), [(2, "kept: a value was written".to_owned())], "{PROMISE}");
    assert_eq!(device.metrics()[0].value, 0x1234_5678, "{PROMISE}");
    device.reset();
    assert_eq!(device.read(0, 0, Width::Word), Ok(0), "{PROMISE}");
}

#[test]
fn queues_of_api_0_1_are_taken() {
    let (_host, Instance::Virtio(device)) = device("queues") else { panic!("{PROMISE}: no virtio device") };
    let traits = device.traits();
    assert_eq!((traits.device_type, traits.config_size, traits.queue_sizes), (63, 32, vec![16]), "{PROMISE}");
    let memory = Arc::new(FakeMemory::new(1 << 20));
    let driver = QueueDriver::new(memory, 0, 16, 1 << 32);
    let state = QueueState { next_avail: 3, next_used: 2 };
    let setup = driver.setup(state);
    let used_ring = setup.used_ring;
    device.start_queue(0, setup).unwrap_or_else(|error| panic!("{PROMISE}: {error}"));
    let mut told = [0; 32];
    device.read_config(0, &mut told);
    assert_eq!(told[..8], used_ring.to_le_bytes(), "{PROMISE}");
    assert_eq!(told[8..16], FakeMemory::BASE.to_le_bytes(), "{PROMISE}");
    assert_eq!((told[16], &told[24..]), (16, &(1_u64 << 32).to_le_bytes()[..]), "{PROMISE}");
    assert_eq!(device.stop_queue(0), Some(state), "{PROMISE}");
    assert_eq!(device.stop_queue(0), None, "{PROMISE}");
    device.write_config(1, b"ab");
    device.read_config(0, &mut told[..4]);
    assert_eq!(told[1..3], *b"ab", "{PROMISE}");
}

#[test]
fn functions_of_api_0_2_are_taken() {
    let (host, Instance::Pci(device)) = device("function") else { panic!("{PROMISE}: no PCI device") };
    let told = device.layout();
    let identity =
        Identity { vendor: 1, device: 2, subsystem_vendor: 3, subsystem: 4, class: 0x05_0607, revision: 8 };
    let capabilities = vec![Capability { id: 9, body: vec![4, 5], writable: vec![0, 1] }];
    let bars = vec![Bar { index: 1, size: 0x1000 }, Bar { index: 2, size: 16 }];
    assert_eq!(told, PciLayout { identity, bars, capabilities, vectors: 2, line: true }, "{PROMISE}");
    let events: Vec<Event> = (0..3).map(|_| Event::new().unwrap()).collect();
    let interrupt = |at: usize| Interrupt::new(events[at].try_clone().unwrap());
    let (interrupts, messages) = Interrupts::new(Some(interrupt(0)), vec![interrupt(1), interrupt(2)]);
    device.start(interrupts).unwrap_or_else(|error| panic!("{PROMISE}: {error}"));
    assert_eq!(device.read(2, 8, Width::Word), Ok(7), "{PROMISE}");
    for (on, raised) in [(false, [true, false, false]), (true, [false, false, true])] {
        messages.set(on);
        device.write(2, 8, Width::Word, 0x1234_5678).unwrap();
        assert_eq!([0, 1, 2].map(|at| events[at].take()), raised, "{PROMISE}");
    }
    assert_eq!(device.read(2, 8, Width::Word), Ok(0x1234_5678), "{PROMISE}");
    assert_eq!(device.read(2, 8, Width::Half), Err(AccessError::Width), "{PROMISE}");
    assert_eq!(device.read(1, 8, Width::Word), Err(AccessError::NoRegister), "{PROMISE}");
    assert_eq!(host.log_lines().len(), 2, "{PROMISE}");
    device.reset();
    assert_eq!(device.read(2, 8, Width::Word), Ok(0), "{PROMISE}");
}

#[test]
fn nodes_of_api_0_1_are_taken() {
    let (_host, Instance::Mmio(device)) = device("nodes") else { panic!("{PROMISE}: no MMIO device") };
    assert_eq!(device.nodes_below()[0].name, "sensor", "{PROMISE}");
    let beside = device.nodes_beside();
    assert_eq!((beside.len(), beside[0].name.as_str()), (1, "keys"), "{PROMISE}");
    let power = &beside[0].children[0];
    assert_eq!(power.name, "power", "{PROMISE}");
    assert_eq!(power.references, [("gpios".to_owned(), vec![vec![3, 0], vec![]])], "{PROMISE}");
}

#[test]
fn the_crate_stays_compatible_with_what_was_published() {
    // abi_stable refuses types of a crate whose version is not compatible, whatever they look like.
    assert_eq!(
        (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")),
        ("0", "1"),
        "{PROMISE}: another version of the crate needs a host that takes both, or another major API"
    );
}
