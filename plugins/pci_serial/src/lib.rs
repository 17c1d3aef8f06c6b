//! A serial card on PCI: one 16550A with registers in a memory BAR, and a console of the host at its far end.
#![deny(unsafe_code)]

mod card;
mod port;
mod pump;
mod uart;

pub use card::SerialCard;
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the card.
    pub struct Options {
        /// Where the guest's output goes and its input comes from: an attachment of the host, such as pty.
        pub console: String = with_default("console", "stdio", OptionKind::Text),
    }
}

/// Makes a card.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let console = services.open_console(&options.console)?;
    Ok(Device::pci(SerialCard::new(console, services)))
}

export_plugin! {
    id: "org.gvmm.pci-serial",
    name: "pci_serial",
    vendor: "gvmm",
    url: "",
    description: "Serial port on PCI with a console of the host at its far end",
    kind: Pci,
    options: Options,
    create: create,
    requires: ["gvmm.console/1"],
    syscalls: ["ppoll"],
}
