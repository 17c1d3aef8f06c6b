//! A virtio device on PCI as a driver sees it (virtio 1.2, 4.1), through the files of `/sys/bus/pci/devices/FUNCTION`.

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::{Context, Result};

use crate::mapping::Mapping;

/// Fields of the common configuration (virtio 1.2, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const DEVICE_STATUS: usize = 0x14;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
}

/// Bits of the device status (virtio 1.2, 2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    pub(crate) const DRIVER: u8 = 2;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
}

/// Kinds of structures that the capabilities name (virtio 1.2, 4.1.4).
const COMMON_CONFIG: u8 = 1;
const NOTIFY_CONFIG: u8 = 2;
/// The capability of a vendor, and where in configuration space the list begins.
const VENDOR_CAPABILITY: u8 = 9;
const CAPABILITIES: usize = 0x34;

/// Guest addresses of the parts of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// The registers of a device.
pub(crate) struct Registers {
    bar: Mapping,
    common: usize,
    notify: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Notify {
    at: usize,
    multiplier: usize,
}

impl Registers {
    /// The registers of a function that no driver is bound to, and whose memory space is enabled.
    pub(crate) fn open(function: &Path) -> Result<Self> {
        let config = function.join("config");
        let config = std::fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let (common, notify) = places(&config)?;
        let bar = function.join("resource0");
        let file = OpenOptions::new().read(true).write(true).open(&bar);
        let file = file.with_context(|| format!("cannot open {}", bar.display()))?;
        let bar = Mapping::of_file(&file, file.metadata()?.len())
            .with_context(|| format!("cannot map {}", bar.display()))?;
        Ok(Self { bar, common, notify })
    }

    pub(crate) fn status(&self) -> u8 {
        self.bar.read(self.common + common::DEVICE_STATUS)
    }

    /// Adds bits to the status; zero resets the device.
    pub(crate) fn set_status(&self, bits: u8) {
        let status = if bits == 0 { 0 } else { self.status() | bits };
        self.bar.write(self.common + common::DEVICE_STATUS, status);
    }

    pub(crate) fn offered_features(&self) -> u64 {
        let half = |select: u32| {
            self.bar.write(self.common + common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.bar.read::<u32>(self.common + common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    pub(crate) fn accept_features(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.bar.write(self.common + common::DRIVER_FEATURE_SELECT, select);
            self.bar.write(self.common + common::DRIVER_FEATURE, half);
        }
    }

    pub(crate) fn queues(&self) -> u16 {
        self.bar.read(self.common + common::NUM_QUEUES)
    }

    /// Puts a queue into use with at most so many entries.
    pub(crate) fn enable_queue(&self, index: u16, size: u16, rings: Rings) {
        self.bar.write(self.common + common::QUEUE_SELECT, index);
        let most: u16 = self.bar.read(self.common + common::QUEUE_SIZE);
        self.bar.write(self.common + common::QUEUE_SIZE, size.min(most));
        self.bar.write(self.common + common::QUEUE_DESC, rings.descriptors);
        self.bar.write(self.common + common::QUEUE_DRIVER, rings.available);
        self.bar.write(self.common + common::QUEUE_DEVICE, rings.used);
        self.bar.write(self.common + common::QUEUE_ENABLE, 1_u16);
    }

    /// Where to write a queue's index to kick it.
    pub(crate) fn doorbell(&self, index: u16) -> usize {
        self.bar.write(self.common + common::QUEUE_SELECT, index);
        let offset: u16 = self.bar.read(self.common + common::QUEUE_NOTIFY_OFF);
        self.notify.at + usize::from(offset) * self.notify.multiplier
    }

    pub(crate) fn kick(&self, index: u16, doorbell: usize) {
        self.bar.write(doorbell, index);
    }
}

/// Where in BAR 0 the common configuration and the notifications are.
fn places(config: &[u8]) -> Result<(usize, Notify)> {
    let byte = |at: usize| config.get(at).copied().context("configuration space is cut short: be root");
    let word = |at: usize| -> Result<usize> {
        let bytes = config.get(at..at + 4).context("a capability is cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    let (mut common, mut notify) = (None, None);
    let mut at = usize::from(byte(CAPABILITIES)?);
    // A list longer than configuration space has a loop.
    for _ in 0..config.len() {
        if at == 0 {
            break;
        }
        if byte(at)? == VENDOR_CAPABILITY && byte(at + 4)? == 0 {
            match byte(at + 3)? {
                COMMON_CONFIG => common = Some(word(at + 8)?),
                NOTIFY_CONFIG => notify = Some(Notify { at: word(at + 8)?, multiplier: word(at + 16)? }),
                _ => {}
            }
        }
        at = usize::from(byte(at + 1)?);
    }
    common.zip(notify).context("no modern virtio device in BAR 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_lead_to_the_registers() {
        let mut config = vec![0; 256];
        config[CAPABILITIES] = 0x40;
        config[0x40..0x50].copy_from_slice(&[9, 0x50, 16, 1, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0]);
        config[0x50..0x64].copy_from_slice(&[9, 0, 20, 2, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0]);
        let notify = Notify { at: 0x2000, multiplier: 4 };
        assert_eq!(places(&config).unwrap(), (0x1000, notify));
        assert!(places(&config[..64]).is_err());
        config[0x51] = 0x40;
        config[0x43] = 3;
        assert!(places(&config).is_err());
    }
}
