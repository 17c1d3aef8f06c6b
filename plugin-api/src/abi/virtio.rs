//! The extension `gvmm.virtio/1`. Frozen.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RArc, ROption, RResult, RSlice, RSliceMut, RString, RVec};

use super::{contain, status};
use crate::interrupt::{Event, Interrupt};
use crate::log::Scope;
use crate::memory::MemoryRegion;
use crate::virtio::{InflightRegion, QueueSetup, QueueState, VirtioDevice, VirtioTraits};

/// A virtio device across the boundary.
#[sabi_trait]
pub trait RawVirtio: Send + Sync {
    /// See [`VirtioDevice::traits`].
    fn traits(&self) -> RResult<RawTraits, RString>;
    /// See [`VirtioDevice::read_config`]; a value of [`status`].
    fn read_config(&self, offset: u32, data: RSliceMut<'_, u8>) -> u32;
    /// See [`VirtioDevice::write_config`]; a value of [`status`].
    fn write_config(&self, offset: u32, data: RSlice<'_, u8>) -> u32;
    /// See [`VirtioDevice::start_queue`]; the eventfds change hands.
    fn start_queue(&self, index: u16, setup: RawQueue) -> RResult<(), RString>;
    /// See [`VirtioDevice::stop_queue`].
    #[sabi(last_prefix_field)]
    fn stop_queue(&self, index: u16) -> RResult<ROption<RawQueueState>, RString>;
}

/// A shared [`RawVirtio`].
pub type RawVirtioArc = RawVirtio_TO<'static, RArc<()>>;

/// [`VirtioTraits`].
#[repr(C)]
#[derive(StableAbi)]
pub struct RawTraits {
    device_type: u32,
    config_size: u32,
    features: u64,
    queue_sizes: RVec<u16>,
}

/// [`QueueState`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawQueueState {
    next_avail: u16,
    next_used: u16,
}

/// [`MemoryRegion`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct RawRegion {
    guest_address: u64,
    size: u64,
    host_address: usize,
    /// -1 when the memory is private.
    fd: i32,
    fd_offset: u64,
}

/// [`QueueSetup`].
#[repr(C)]
#[derive(StableAbi)]
pub struct RawQueue {
    size: u16,
    state: RawQueueState,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
    features: u64,
    kick: i32,
    call: i32,
    memory: RVec<RawRegion>,
    inflight_address: usize,
    /// 0 when there is no in-flight region.
    inflight_size: usize,
}

impl From<QueueState> for RawQueueState {
    fn from(state: QueueState) -> Self {
        Self { next_avail: state.next_avail, next_used: state.next_used }
    }
}

impl From<RawQueueState> for QueueState {
    fn from(raw: RawQueueState) -> Self {
        Self { next_avail: raw.next_avail, next_used: raw.next_used }
    }
}

impl From<VirtioTraits> for RawTraits {
    fn from(traits: VirtioTraits) -> Self {
        Self {
            device_type: traits.device_type,
            config_size: traits.config_size,
            features: traits.features,
            queue_sizes: traits.queue_sizes.into(),
        }
    }
}

impl From<RawTraits> for VirtioTraits {
    fn from(raw: RawTraits) -> Self {
        Self {
            device_type: raw.device_type,
            config_size: raw.config_size,
            features: raw.features,
            queue_sizes: raw.queue_sizes.into(),
        }
    }
}

impl From<QueueSetup> for RawQueue {
    fn from(setup: QueueSetup) -> Self {
        let region = |region: MemoryRegion| {
            let (fd, fd_offset) = region.file().unwrap_or((-1, 0));
            RawRegion {
                guest_address: region.guest_address(),
                size: region.size(),
                host_address: region.host_address(),
                fd,
                fd_offset,
            }
        };
        Self {
            size: setup.size,
            state: setup.state.into(),
            descriptor_table: setup.descriptor_table,
            available_ring: setup.available_ring,
            used_ring: setup.used_ring,
            features: setup.features,
            kick: OwnedFd::from(setup.kick).into_raw_fd(),
            call: OwnedFd::from(setup.call.into_event()).into_raw_fd(),
            memory: setup.memory.into_iter().map(region).collect(),
            inflight_address: setup.inflight.map_or(0, |region| region.host_address()),
            inflight_size: setup.inflight.map_or(0, |region| region.size()),
        }
    }
}

/// Takes over a set-up that came across the boundary.
fn import(raw: RawQueue) -> QueueSetup {
    // SAFETY: the host promises what `MemoryRegion::new` asks for; it made the regions by it.
    let region = |r: RawRegion| unsafe {
        MemoryRegion::new(r.guest_address, r.size, r.host_address, (r.fd >= 0).then_some((r.fd, r.fd_offset)))
    };
    // SAFETY: the host gives the descriptors away with the call.
    let event = |fd| Event::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the host made the region by `InflightRegion::new`.
    let inflight = || unsafe { InflightRegion::new(raw.inflight_address, raw.inflight_size) };
    QueueSetup {
        size: raw.size,
        descriptor_table: raw.descriptor_table,
        available_ring: raw.available_ring,
        used_ring: raw.used_ring,
        state: raw.state.into(),
        kick: event(raw.kick),
        call: Interrupt::new(event(raw.call)),
        features: raw.features,
        inflight: (raw.inflight_size > 0).then(inflight),
        memory: raw.memory.into_iter().map(region).collect(),
    }
}

/// The plugin's side: a device for the boundary.
pub(crate) struct Export(pub(crate) Arc<dyn VirtioDevice>, pub(crate) Scope);

impl RawVirtio for Export {
    fn traits(&self) -> RResult<RawTraits, RString> {
        contain(self.1, || self.0.traits()).map(RawTraits::from).map_err(RString::from).into()
    }

    fn read_config(&self, offset: u32, mut data: RSliceMut<'_, u8>) -> u32 {
        let read = contain(self.1, || self.0.read_config(offset, data.as_mut_slice()));
        read.map_or(status::PANICKED, |()| status::OK)
    }

    fn write_config(&self, offset: u32, data: RSlice<'_, u8>) -> u32 {
        let written = contain(self.1, || self.0.write_config(offset, data.as_slice()));
        written.map_or(status::PANICKED, |()| status::OK)
    }

    fn start_queue(&self, index: u16, setup: RawQueue) -> RResult<(), RString> {
        let setup = import(setup);
        contain(self.1, || self.0.start_queue(index, setup))
            .and_then(|result| result)
            .map_err(RString::from)
            .into()
    }

    fn stop_queue(&self, index: u16) -> RResult<ROption<RawQueueState>, RString> {
        let stopped = contain(self.1, || self.0.stop_queue(index));
        stopped.map(|state| state.map(RawQueueState::from).into()).map_err(RString::from).into()
    }
}

/// The extension for a device's `gvmm.virtio/1`.
pub(crate) fn export(device: Arc<dyn VirtioDevice>, scope: Scope) -> ROption<super::extension::Extension> {
    let object = RawVirtio_TO::from_ptr(RArc::new(Export(device, scope)), sabi_trait::TD_Opaque);
    ROption::RSome(super::extension::Extension::wrap(object))
}
