//! A disk on a temporary image, driven through the test kit.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::Device;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{Buffer, FakeHost, QueueDriver, Used, VirtioHarness};
use gvmm_plugin_api::virtio::VirtioDevice;
use tempfile::TempDir;

use crate::Options;
use crate::device::BlockDevice;
use crate::image::Image;

/// Guest address of the header.
pub(crate) const HEADER: u64 = VirtioHarness::DATA;
/// Guest address of the status byte.
pub(crate) const STATUS: u64 = VirtioHarness::DATA + 0x100;
/// Guest address of the data.
pub(crate) const DATA: u64 = VirtioHarness::DATA + 0x1000;

/// Status of a request that was never answered.
const NO_STATUS: u8 = 0xff;

/// A folder with an image in it.
pub(crate) struct TestDisk {
    folder: TempDir,
}

/// A disk whose queue 0 is started.
pub(crate) struct Machine {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) device: Arc<dyn VirtioDevice>,
    pub(crate) harness: VirtioHarness,
    pub(crate) queue: QueueDriver,
}

/// An answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) len: u32,
}

impl TestDisk {
    /// An image with this content.
    pub(crate) fn new(content: &[u8]) -> Self {
        let folder = TempDir::new().unwrap();
        let disk = Self { folder };
        fs::write(disk.path(), content).unwrap();
        disk
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    fn options(&self, options: &[(&str, &str)]) -> Result<Options, String> {
        let path = self.path().into_os_string().into_string().unwrap();
        let own = options.iter().all(|(name, _)| *name != "disk").then_some(("disk", path.as_str()));
        let given = own.into_iter().chain(options.iter().copied());
        let values = Values::check(Options::SPECS, given).map_err(|e| e.to_string())?;
        Ok(Options::from_values(&values).unwrap())
    }

    /// The device with further options.
    pub(crate) fn device(
        &self,
        host: &Arc<FakeHost>,
        options: &[(&str, &str)],
    ) -> Result<Arc<dyn VirtioDevice>, String> {
        match crate::create(self.options(options)?, host.services())? {
            Device::Virtio(device) => Ok(device),
            _ => panic!("a disk is a virtio device"),
        }
    }

    /// The device with all its features accepted and queue 0 started.
    pub(crate) fn start(&self, options: &[(&str, &str)]) -> Machine {
        self.start_with(options, u64::MAX)
    }

    /// The device with some features accepted and queue 0 started.
    pub(crate) fn start_with(&self, options: &[(&str, &str)], features: u64) -> Machine {
        let host = Arc::new(FakeHost::default());
        let device = self.device(&host, options).unwrap();
        Machine::new(host, device, features)
    }

    /// A device with another image in place of the file.
    pub(crate) fn start_image(&self, image: impl Image + 'static, options: &[(&str, &str)]) -> Machine {
        let host = Arc::new(FakeHost::default());
        let options = self.options(options).unwrap();
        let device = BlockDevice::with_image(Box::new(image), &options, host.services()).unwrap();
        Machine::new(host, Arc::new(device), u64::MAX)
    }
}

impl Machine {
    fn new(host: Arc<FakeHost>, device: Arc<dyn VirtioDevice>, features: u64) -> Self {
        let mut harness = VirtioHarness::new(device.clone(), features);
        let queue = harness.start(0, 64);
        Self { host, device, harness, queue }
    }

    /// A request in the usual cut: header, data, status.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: Buffer) -> Answer {
        self.write_header(kind, sector);
        let header = Buffer::readable(HEADER, 16);
        let status = Buffer::writable(STATUS, 1);
        if data.len == 0 { self.send(&[header, status]) } else { self.send(&[header, data, status]) }
    }

    pub(crate) fn write_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.harness.memory().write(HEADER, &header);
    }

    /// A request cut into these buffers, the status byte being at [`STATUS`].
    pub(crate) fn send(&mut self, buffers: &[Buffer]) -> Answer {
        self.harness.memory().write(STATUS, &[NO_STATUS]);
        let Used { len, .. } = self.queue.request(buffers);
        Answer { status: self.harness.memory().read(STATUS, 1)[0], len }
    }

    /// Reads sectors; the data when the disk says that it succeeded.
    pub(crate) fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>, u8> {
        let answer = self.request(0, sector, Buffer::writable(DATA, len));
        if answer.status == 0 {
            Ok(self.harness.memory().read(DATA, len as usize))
        } else {
            Err(answer.status)
        }
    }

    /// Writes sectors; the status.
    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.harness.memory().write(DATA, data);
        self.request(1, sector, Buffer::readable(DATA, data.len() as u32)).status
    }

    pub(crate) fn flush(&mut self) -> u8 {
        self.request(4, 0, Buffer::writable(DATA, 0)).status
    }

    /// Discards (11) or zeroes (13) sectors; the status.
    pub(crate) fn range_request(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
            })
            .collect();
        self.harness.memory().write(DATA, &bytes);
        self.request(kind, 0, Buffer::readable(DATA, bytes.len() as u32)).status
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|metric| metric.name == name).unwrap().value
    }
}

/// Bytes that differ from sector to sector and within each.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 31 + i % 251) as u8).collect()
}
