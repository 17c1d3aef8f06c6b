//! Requests per second through the device, from a driver in the same process on an image in memory: what remains is
//! the cost of the queue, the device and the thread wake-ups.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that cannot run should stop"
)]

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gvmm_plugin_api::Device;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{Buffer, FakeHost, QueueDriver, VirtioHarness};
use virtio_blk::Options;

const IMAGE_SIZE: u64 = 64 << 20;
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Room for header and status of each request in flight.
const HEADERS: u64 = VirtioHarness::DATA;
/// Room for the data of each request in flight.
const DATA: u64 = VirtioHarness::DATA + (1 << 20);

struct Bench {
    _image: tempfile::TempPath,
    harness: VirtioHarness,
    queue: QueueDriver,
    sector: u64,
}

impl Bench {
    fn new() -> Self {
        let folder = PathBuf::from("/dev/shm");
        let folder = if folder.is_dir() { folder } else { std::env::temp_dir() };
        let image = tempfile::Builder::new().tempfile_in(folder).unwrap().into_temp_path();
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(IMAGE_SIZE).unwrap();
        let path = image.to_str().unwrap();
        let values = Values::check(Options::SPECS, [("disk", path)]).unwrap();
        let host = Arc::new(FakeHost::default());
        let device = virtio_blk::create(Options::from_values(&values).unwrap(), host.services()).unwrap();
        let Device::Virtio(device) = device else { panic!("a disk is a virtio device") };
        let mut harness = VirtioHarness::new(device, u64::MAX);
        let queue = harness.start(0, 256);
        Self { _image: image, harness, queue, sector: 0 }
    }

    /// Has `depth` requests of `size` bytes done, all in flight at once.
    fn round(&mut self, kind: u32, depth: u64, size: u32) {
        for slot in 0..depth {
            // A stride that is prime to the number of blocks visits all of them in no simple order.
            self.sector = (self.sector + 8 * 4099) % (IMAGE_SIZE / 512 - u64::from(size) / 512);
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&self.sector.to_le_bytes());
            let at = HEADERS + slot * 64;
            self.harness.memory().write(at, &header);
            let data = Buffer { address: DATA + slot * u64::from(size), len: size, writable: kind == READ };
            self.queue.add(&[Buffer::readable(at, 16), data, Buffer::writable(at + 32, 1)]);
        }
        self.queue.kick();
        for _ in 0..depth {
            self.queue.wait_used();
        }
    }
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("virtio_blk");
    let mut bench = Bench::new();
    for (name, kind) in [("read_4k", READ), ("write_4k", WRITE)] {
        for depth in [1, 32] {
            group.throughput(Throughput::Elements(depth));
            group
                .bench_function(BenchmarkId::new(name, depth), |b| b.iter(|| bench.round(kind, depth, 4096)));
        }
    }
    for (name, kind) in [("read_512k", READ), ("write_512k", WRITE)] {
        group.throughput(Throughput::Bytes(512 << 10));
        group.bench_function(BenchmarkId::new(name, 1), |b| b.iter(|| bench.round(kind, 1, 512 << 10)));
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
