//! Plugins that misbehave, one an example. Each says in its first line what it does wrong.
//!
//! `gvmm plugin check` must find each of them out, by the test that names what is wrong.

use gvmm_plugin_api::fdt::FdtNode;
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};

/// A device that does nothing, and nothing wrong: what is wrong is around it.
#[derive(Debug)]
pub struct Nothing;

impl MmioDevice for Nothing {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![0x1000], lines: 0 }
    }

    fn node(&self) -> FdtNode {
        FdtNode::new("nothing", &["gvmm,nothing"])
    }

    fn start(&self, _: Vec<Interrupt>) -> Result<(), String> {
        Ok(())
    }

    fn read(&self, _: u32, _: u64, _: Width) -> Result<u64, AccessError> {
        Err(AccessError::NoRegister)
    }

    fn write(&self, _: u32, _: u64, _: Width, _: u64) -> Result<(), AccessError> {
        Err(AccessError::NoRegister)
    }

    fn reset(&self) {}
}
