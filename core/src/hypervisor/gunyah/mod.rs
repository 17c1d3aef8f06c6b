//! The `gunyah` accelerator.
//!
//! Three incompatible generations of the driver are in the field; [`probe`] finds out which one is there, and nothing
//! above this module knows. A start goes through `rules`, which refuses what the hypervisor would refuse without
//! saying why, then through `vm`; what the driver refuses nevertheless is put into words by `explain`.

mod config_node;
mod explain;
mod faults;
mod kernel_log;
mod layout;
mod memory;
mod overlay;
pub mod probe;
mod rules;
#[doc(hidden)]
pub mod scripted;
mod sys;
mod uapi;
mod unavailable;
mod vcpu;
mod vm;
mod wiring;

#[cfg(test)]
mod fixture;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use vm_fdt::FdtWriter;

use super::plan::VmPlan;
use super::{Accelerator, Error, StartedVm};
use crate::host::{cores, memlock, pieces};
use crate::memory::{GuestRam, MemorySource};
use memory::GuestMemory;
use probe::{Driver, Generation, Probe};
use sys::Node;

pub use unavailable::why_unavailable;

/// The Gunyah hypervisor, through its device node.
#[derive(Debug)]
pub struct Gunyah {
    path: PathBuf,
    /// The node and its driver, once they were found usable.
    found: OnceLock<(Arc<Node>, Driver)>,
}

impl Default for Gunyah {
    fn default() -> Self {
        Self { path: PathBuf::from(probe::NODE), found: OnceLock::new() }
    }
}

impl Gunyah {
    /// Opens the node and finds out which driver is behind it.
    fn driver(&self) -> Result<&(Arc<Node>, Driver), Error> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let unavailable = |probe: &Probe| Error::Unavailable(why_unavailable(probe, &self.path));
        let node = Node::open(&self.path).map_err(|error| unavailable(&Probe::of_open_error(&error)))?;
        match probe::probe_node(&node) {
            Probe::Usable(driver) => {
                tracing::debug!("Gunyah driver of generation {}: {driver:?}", driver.generation);
                Ok(self.found.get_or_init(|| (Arc::new(node), driver)))
            }
            other => Err(unavailable(&other)),
        }
    }
}

impl Accelerator for Gunyah {
    fn name(&self) -> &'static str {
        "gunyah"
    }

    fn probe(&self) -> Result<(), Error> {
        self.driver().map(drop)
    }

    fn memory_source(&self) -> Option<Arc<dyn MemorySource>> {
        // Without a usable driver there is nothing to say here: the start will say it.
        match self.driver() {
            Ok((node, driver)) if driver.generation == Generation::B => {
                Some(Arc::new(GuestMemory::new(node.clone())))
            }
            _ => None,
        }
    }

    fn describe(&self, plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), Error> {
        config_node::write(plan, fdt)
    }

    /// An exit goes through the hypervisor and the host's kernel; on the open build under QEMU it takes 1.4 ms.
    fn exits_are_dear(&self) -> bool {
        true
    }

    fn device_tree_limit(&self) -> usize {
        overlay::GROWN_TREE
    }

    fn device_tree_growth(&self, plan: &VmPlan<'_>) -> usize {
        overlay::size(plan)
    }

    fn start(&self, plan: &VmPlan<'_>, ram: &GuestRam) -> Result<StartedVm, Error> {
        let (node, driver) = self.driver()?;
        rules::check(plan, driver, pieces::page_size())?;
        memlock::allow(rules::locked_bytes(plan, driver.generation)).map_err(Error::Plan)?;
        warn_of_fragmentation(plan, driver.generation);
        let doubts = rules::doubts(plan, cores::present());
        for doubt in &doubts {
            tracing::warn!("{doubt}");
        }
        vm::start(node, driver.generation, plan, ram, &doubts)
    }
}

/// Says beforehand what a host whose memory is in small pieces will do to the VM.
fn warn_of_fragmentation(plan: &VmPlan<'_>, generation: Generation) {
    let Some(free) = pieces::FreePieces::query() else { return };
    let memory: u64 = plan.memory.iter().map(|range| range.size).sum();
    let list = rules::page_list_bytes(plan, pieces::page_size());
    if generation == Generation::A && free.largest < list {
        tracing::warn!(
            "the driver needs one free piece of {} KiB for its list of pages, and the host's largest is {} KiB; if it \
             fails: echo 1 > /proc/sys/vm/compact_memory",
            list >> 10,
            free.largest >> 10
        );
    }
    if free.huge < memory {
        tracing::info!(
            "{} MiB of the host's free memory are in huge pages and the guest has {} MiB: it starts slower and uses \
             more of the hypervisor's page tables",
            free.huge >> 20,
            memory >> 20
        );
    }
}
