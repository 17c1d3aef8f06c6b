//! A virtio device that takes queues and tells how they were set up, in its configuration space.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use gvmm_plugin_api::abi_stable::library::LibHeader;
use gvmm_plugin_api::abi_stable::sabi_trait::TD_Opaque;
use gvmm_plugin_api::abi_stable::std_types::{
    RArc, RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec, Tuple2,
};
use gvmm_plugin_api::*;

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.frozen.queues","name":"queues","version":"1.0.0","vendor":"gvmm","url":"","description":"Tells of its queue","license":"MIT","kind":"virtio","virtio_type":63,"requires":[],"syscalls":[],"options":[]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};

#[derive(Default)]
struct Told {
    config: [u8; 32],
    queue: Option<RawQueueState>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Told>>);

impl RawVirtio for Shared {
    fn traits(&self) -> RResult<RawTraits, RString> {
        RResult::ROk(RawTraits {
            device_type: 63,
            config_size: 32,
            features: 1 << 32,
            queue_sizes: vec![16].into(),
        })
    }

    fn read_config(&self, offset: u32, mut data: RSliceMut<'_, u8>) -> u32 {
        let from = offset as usize;
        let to = from + data.len();
        data.as_mut_slice().copy_from_slice(&self.0.lock().unwrap().config[from..to]);
        0
    }

    fn write_config(&self, offset: u32, data: RSlice<'_, u8>) -> u32 {
        let from = offset as usize;
        self.0.lock().unwrap().config[from..from + data.len()].copy_from_slice(data.as_slice());
        0
    }

    fn start_queue(&self, index: u16, setup: RawQueue) -> RResult<(), RString> {
        // SAFETY: the host gives the descriptors away with the call.
        let (kick, call) = unsafe { (OwnedFd::from_raw_fd(setup.kick), OwnedFd::from_raw_fd(setup.call)) };
        drop((kick, call));
        if index > 0 || setup.memory.len() != 1 {
            return RResult::RErr("one queue, one region".into());
        }
        let mut told = self.0.lock().unwrap();
        told.queue = Some(setup.state);
        told.config[..8].copy_from_slice(&setup.used_ring.to_le_bytes());
        told.config[8..16].copy_from_slice(&setup.memory[0].guest_address.to_le_bytes());
        told.config[16..18].copy_from_slice(&setup.size.to_le_bytes());
        told.config[24..32].copy_from_slice(&setup.features.to_le_bytes());
        RResult::ROk(())
    }

    fn stop_queue(&self, _index: u16) -> RResult<ROption<RawQueueState>, RString> {
        RResult::ROk(self.0.lock().unwrap().queue.take().into())
    }
}

impl RawDevice for Shared {
    fn reset(&self) -> ROption<RString> {
        self.0.lock().unwrap().config = [0; 32];
        ROption::RNone
    }

    fn metrics(&self) -> RVec<Tuple2<RString, u64>> {
        RVec::new()
    }

    fn extension(&self, id: RStr<'_>) -> ROption<Extension> {
        if id != VIRTIO {
            return ROption::RNone;
        }
        ROption::RSome(Extension::wrap(RawVirtio_TO::from_ptr(RArc::new(self.clone()), TD_Opaque)))
    }
}

extern "C" fn descriptor() -> RStr<'static> {
    TEXT.into()
}

extern "C" fn init(_: u8) {}

extern "C" fn create(_: OptionList, _: RawHostArc) -> Created {
    RResult::ROk(RawDevice_TO::from_ptr(RBox::new(Shared::default()), TD_Opaque))
}

extern "C" fn root() -> Loaded {
    load(PluginRoot { descriptor, init, create })
}

#[used]
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
// SAFETY: `root` passes on what `load` returns.
static HEADER: LibHeader = unsafe { header(root) };
