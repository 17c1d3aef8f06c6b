//! Arm PrimeCell UART (PL011, Arm DDI 0183 r1p5) with a console of the host at its far end.
#![deny(unsafe_code)]

mod burst;
mod device;
mod port;
mod pump;
mod registers;
mod uart;

pub use device::Pl011;
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the UART.
    pub struct Options {
        /// Where the guest's output goes and its input comes from: an attachment of the host, such as stdio.
        pub console: String = with_default("console", "stdio", OptionKind::Text),
    }
}

/// Makes a UART.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let console = services.open_console(&options.console)?;
    Ok(Device::mmio(Pl011::new(console, services)))
}

export_plugin! {
    id: "org.gvmm.pl011",
    name: "pl011",
    vendor: "gvmm",
    url: "",
    description: "Arm PL011 UART with a console of the host at its far end",
    kind: Mmio,
    options: Options,
    create: create,
    requires: ["gvmm.console/1"],
    syscalls: ["ppoll"],
}
