//! Virtio device types by name, and what is known of them without asking a back end.

/// A type of virtio device (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceType {
    /// Number.
    pub number: u32,
    /// The name users write.
    pub name: &'static str,
    /// The name in the description files of back ends (`vhost-user.json` of QEMU), where it has one.
    pub described_as: Option<&'static str>,
    /// Queues that a device has when nobody says otherwise.
    pub queues: u16,
    /// Sizes of the configuration space in the versions of virtio, the newest first; a back end knows one of them.
    pub config_sizes: &'static [u32],
}

/// All types that have a name here.
pub const DEVICE_TYPES: &[DeviceType] = &[
    DeviceType {
        number: 1,
        name: "net",
        described_as: Some("net"),
        queues: 2,
        config_sizes: &[24, 20, 17, 12, 10],
    },
    DeviceType {
        number: 2,
        name: "blk",
        described_as: Some("block"),
        queues: 1,
        config_sizes: &[96, 72, 60, 36],
    },
    DeviceType {
        number: 3,
        name: "console",
        described_as: Some("console"),
        queues: 2,
        config_sizes: &[12, 8, 4],
    },
    DeviceType { number: 4, name: "rng", described_as: Some("rng"), queues: 1, config_sizes: &[0] },
    DeviceType {
        number: 5,
        name: "balloon",
        described_as: Some("balloon"),
        queues: 2,
        config_sizes: &[16, 8],
    },
    DeviceType { number: 8, name: "scsi", described_as: Some("scsi"), queues: 3, config_sizes: &[36] },
    DeviceType { number: 16, name: "gpu", described_as: Some("gpu"), queues: 2, config_sizes: &[16] },
    DeviceType { number: 18, name: "input", described_as: Some("input"), queues: 2, config_sizes: &[136] },
    DeviceType { number: 19, name: "vsock", described_as: Some("vsock"), queues: 3, config_sizes: &[8] },
    DeviceType {
        number: 20,
        name: "crypto",
        described_as: Some("crypto"),
        queues: 2,
        config_sizes: &[56, 48],
    },
    DeviceType { number: 25, name: "sound", described_as: None, queues: 4, config_sizes: &[16, 12] },
    DeviceType { number: 26, name: "fs", described_as: Some("fs"), queues: 2, config_sizes: &[44, 40] },
    DeviceType { number: 27, name: "pmem", described_as: None, queues: 1, config_sizes: &[16] },
    DeviceType { number: 34, name: "i2c", described_as: None, queues: 1, config_sizes: &[0] },
    DeviceType { number: 40, name: "bt", described_as: None, queues: 2, config_sizes: &[8, 4] },
    DeviceType { number: 41, name: "gpio", described_as: None, queues: 2, config_sizes: &[8] },
];

/// The type of a number, if it has a name.
pub fn of_number(number: u32) -> Option<&'static DeviceType> {
    DEVICE_TYPES.iter().find(|known| known.number == number)
}

/// The type of a name.
pub fn of_name(name: &str) -> Option<&'static DeviceType> {
    DEVICE_TYPES.iter().find(|known| known.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_given_once() {
        for (i, known) in DEVICE_TYPES.iter().enumerate() {
            assert_eq!(of_number(known.number), Some(known));
            assert_eq!(of_name(known.name), Some(known));
            assert!(DEVICE_TYPES[..i].iter().all(|before| before.number < known.number));
            assert!(known.config_sizes.is_sorted_by(|a, b| a > b) && !known.config_sizes.is_empty());
        }
    }
}
