//! Disks that grow or shrink while they are in use.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::{info, warn};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::disk::Disk;

/// Time between two looks at the size. A change of size has no event of its own: what the kernel reports for it, it
/// also reports for every write.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks at the size of a disk from time to time.
#[derive(Debug)]
pub(crate) struct ResizeWatch {
    timer: TimerFd,
    services: Services,
}

impl ResizeWatch {
    /// Begins to watch; the descriptor is readable when it is time for [`ResizeWatch::look`].
    pub(crate) fn new(services: Services) -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        timer.set(Expiration::Interval(INTERVAL.into()), TimerSetTimeFlags::empty())?;
        Ok(Self { timer, services })
    }

    /// Looks at the size, and tells the driver if it has changed.
    pub(crate) fn look(&self, disk: &Disk) {
        // Nothing to read means that another look came first.
        let _ = self.timer.wait();
        if update(disk) {
            self.services.config_changed();
        }
    }
}

impl AsFd for ResizeWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Takes over the size that the disk has now; whether it is another one.
pub(crate) fn update(disk: &Disk) -> bool {
    let new = match disk.image.look_at_size() {
        Ok(size) => size,
        Err(error) => {
            warn!("cannot find out the size of the disk: {error}");
            return false;
        }
    };
    let old = disk.capacity.swap(new, Ordering::Relaxed);
    match old.cmp(&new) {
        std::cmp::Ordering::Equal => return false,
        std::cmp::Ordering::Less => info!("the disk has grown from {old} to {new} bytes"),
        std::cmp::Ordering::Greater => {
            warn!("the disk has shrunk from {old} to {new} bytes; what the guest had behind its end is lost");
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use gvmm_plugin_api::testing::wait_until;

    use crate::testing::{Machine, TestDisk, pattern};

    fn sectors(machine: &Machine) -> u64 {
        let mut bytes = [0; 8];
        machine.device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn set_len(disk: &TestDisk, len: u64) {
        File::options().write(true).open(disk.path()).unwrap().set_len(len).unwrap();
    }

    #[test]
    fn the_guest_is_told_of_a_disk_that_grows_and_can_use_what_is_new() {
        let disk = TestDisk::new(&pattern(8192));
        let mut machine = disk.start(&[]);
        assert_eq!(machine.read(16, 512), Err(1));
        set_len(&disk, 16384);
        let host = machine.host.clone();
        wait_until("the news", || host.config_changes() == 1);
        assert_eq!(sectors(&machine), 32);
        assert_eq!(machine.read(16, 512), Ok(vec![0; 512]));
        assert_eq!(machine.write(31, &[7; 512]), 0);
        assert_eq!(machine.write(32, &[7; 512]), 1);
    }

    #[test]
    fn a_reset_shows_the_size_of_the_moment() {
        let disk = TestDisk::new(&pattern(8192));
        let machine = disk.start(&[]);
        set_len(&disk, 4096);
        machine.device.stop_queue(0);
        machine.device.reset();
        assert_eq!(sectors(&machine), 8);
    }

    #[test]
    fn with_resize_off_the_size_stays() {
        let disk = TestDisk::new(&pattern(8192));
        let machine = disk.start(&[("resize", "off")]);
        set_len(&disk, 16384);
        machine.device.stop_queue(0);
        machine.device.reset();
        assert_eq!(sectors(&machine), 16);
    }
}
