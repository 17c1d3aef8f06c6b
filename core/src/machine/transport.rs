//! How the guest sees a virtio device.

use super::Protection;
use crate::device_tree::{PCI_HOST, WINDOW};
use crate::plugin::argument::DeviceArgument;

/// The option of every virtio device that chooses.
const OPTION: &str = "transport";

/// The transport of a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Registers and one interrupt line of its own: the smallest, and two exits an interrupt.
    Mmio,
    /// A function on the PCI bus with a message interrupt for each queue, none of which is an exit.
    Pci,
}

impl Transport {
    /// What `--device PLUGIN,help` says of the option.
    pub const HELP: &str = "  transport=<pci|mmio>  (default pci, mmio with --protected)\n      How the guest sees the \
                            device: pci has an interrupt for each queue and needs no exits; mmio is for kernels \
                            without PCI.\n";

    /// The transport of devices that do not choose. Kernels of protected guests are small and often without PCI.
    pub fn usual(protection: Protection) -> Self {
        match protection {
            Protection::Shared => Self::Pci,
            Protection::Lent { .. } => Self::Mmio,
        }
    }

    /// Texts that a kernel contains which has everything built in that devices on this transport need.
    pub fn drivers(self, protection: Protection) -> Vec<&'static str> {
        let mut drivers = match self {
            Self::Mmio => vec!["virtio-mmio"],
            Self::Pci => vec!["virtio-pci", PCI_HOST],
        };
        if matches!(protection, Protection::Lent { .. }) {
            drivers.push(WINDOW);
        }
        drivers
    }

    /// Whether plugins of this kind have transports.
    pub fn applies_to(kind: &str) -> bool {
        kind == "virtio"
    }

    /// Takes the option out of those for a plugin of this kind and name, if it is there. Devices of other kinds have their
    /// place by what they are.
    pub fn take(argument: &mut DeviceArgument, kind: &str, name: &str) -> Result<Option<Self>, String> {
        let mut chosen = None;
        while let Some(at) = argument.options.iter().position(|(option, _)| option == OPTION) {
            if !Self::applies_to(kind) {
                return Err(format!(
                    "device {name}: option '{OPTION}' is for virtio devices, and this one is of kind {kind}: leave it \
                     out"
                ));
            }
            let (_, word) = argument.options.remove(at);
            if chosen.replace(Self::parse(&word, name)?).is_some() {
                return Err(format!("device {name}: option '{OPTION}' is given twice"));
            }
        }
        Ok(chosen)
    }

    fn parse(word: &str, device: &str) -> Result<Self, String> {
        match word {
            "mmio" => Ok(Self::Mmio),
            "pci" => Ok(Self::Pci),
            _ => Err(format!("device {device}: option '{OPTION}': '{word}' is not pci or mmio")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str, kind: &str) -> (Result<Option<Transport>, String>, Vec<String>) {
        let mut argument = DeviceArgument::parse(text).unwrap();
        let taken = Transport::take(&mut argument, kind, "disk");
        (taken, argument.options.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn the_option_is_not_the_plugins() {
        assert_eq!(take("d,transport=pci,x=1", "virtio"), (Ok(Some(Transport::Pci)), vec!["x".to_owned()]));
        assert_eq!(take("d,transport=mmio", "virtio"), (Ok(Some(Transport::Mmio)), Vec::new()));
        assert_eq!(take("d", "virtio").0, Ok(None));
    }

    #[test]
    fn the_usual_transport_is_pci_but_for_protected_guests() {
        assert_eq!(Transport::usual(Protection::Shared), Transport::Pci);
        assert_eq!(Transport::usual(Protection::Lent { window: 1 << 20, firmware: false }), Transport::Mmio);
    }

    #[test]
    fn devices_of_other_kinds_have_no_transport() {
        for kind in ["mmio", "pci"] {
            assert_eq!(take("d,x=1", kind), (Ok(None), vec!["x".to_owned()]));
            assert_eq!(
                take("d,transport=pci", kind).0.unwrap_err(),
                format!(
                    "device disk: option 'transport' is for virtio devices, and this one is of kind {kind}: leave it out"
                )
            );
        }
    }

    #[test]
    fn a_protected_guests_kernel_needs_the_driver_of_the_window_too() {
        let lent = Protection::Lent { window: 1 << 20, firmware: false };
        for transport in [Transport::Mmio, Transport::Pci] {
            assert!(!transport.drivers(Protection::Shared).contains(&WINDOW));
            assert!(transport.drivers(lent).contains(&WINDOW));
        }
    }

    #[test]
    fn a_wrong_word_is_refused_with_the_right_ones() {
        let error = |text| take(text, "virtio").0.unwrap_err();
        assert_eq!(error("d,transport=usb"), "device disk: option 'transport': 'usb' is not pci or mmio");
        assert_eq!(error("d,transport=pci,transport=pci"), "device disk: option 'transport' is given twice");
    }
}
