//! Panics in a register access, on request even in the one that made the machine, and in its reset.

use gvmm_plugin_api::fdt::FdtNode;
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// When it panics.
    pub struct Options {
        /// The call that panics.
        pub at: String = with_default("at", "read", OptionKind::Choice(&["layout", "node", "start", "read", "write"])),
    }
}

struct Panics(Options);

impl Panics {
    fn reached(&self, call: &str) {
        assert!(self.0.at != call, "told to panic in {call}");
    }
}

impl MmioDevice for Panics {
    fn layout(&self) -> MmioLayout {
        self.reached("layout");
        MmioLayout { windows: vec![0x1000], lines: 1 }
    }

    fn node(&self) -> FdtNode {
        self.reached("node");
        FdtNode::new("panics", &["gvmm,panics"])
    }

    fn start(&self, _: Vec<Interrupt>) -> Result<(), String> {
        self.reached("start");
        Ok(())
    }

    fn read(&self, _: u32, _: u64, _: Width) -> Result<u64, AccessError> {
        self.reached("read");
        Ok(1)
    }

    fn write(&self, _: u32, _: u64, _: Width, _: u64) -> Result<(), AccessError> {
        self.reached("write");
        Ok(())
    }

    fn reset(&self) {}
}

fn create(options: Options, _: Services) -> Result<Device, String> {
    Ok(Device::mmio(Panics(options)))
}

export_plugin! {
    id: "org.gvmm.bad.panics-in-access",
    name: "panics_in_access",
    vendor: "gvmm",
    url: "",
    description: "Panics in a call of one's choice",
    kind: Mmio,
    options: Options,
    create: create,
}
