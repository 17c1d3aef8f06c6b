//! What it costs to load a plugin: beside reading its descriptor, and beside what the system's loader takes of it.
//!
//! Compare within one run: `cargo bench -p gvmm-plugin-api --bench load`. Each round loads a file of its own, since what
//! is loaded stays.

#![allow(missing_docs, clippy::expect_used, reason = "a benchmark")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use gvmm_plugin_api::host::{Library, Manifest};
use tempfile::NamedTempFile;

const PLUGINS: &[&str] =
    &["pl011", "pl031", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "virtio_vsock"];

/// Each mapping of a library stays, and a process has 65530 of them: so long may one plugin take.
const TIME: Duration = Duration::from_millis(200);

fn bench(criterion: &mut Criterion) {
    for name in PLUGINS {
        let library = gvmm_built::release_plugin(name);
        let mut group = criterion.benchmark_group(*name);
        group.sample_size(10).warm_up_time(TIME).measurement_time(TIME);
        each(&mut group, "descriptor", &library, |file| {
            Manifest::read(file).expect("a plugin");
        });
        each(&mut group, "dlopen", &library, dlopen);
        each(&mut group, "load", &library, |file| {
            Library::load(file, 0).expect("the plugin loads");
        });
        group.finish();
    }
}

/// Measures something on a copy of a file that nothing was done with before.
fn each(group: &mut BenchmarkGroup<'_, WallTime>, what: &str, library: &Path, body: fn(&Path)) {
    let copy = || {
        let copy = NamedTempFile::with_suffix(".so").expect("a file");
        std::fs::copy(library, copy.path()).expect("a copy");
        copy
    };
    let body = |copy: NamedTempFile| {
        body(copy.path());
        copy
    };
    group.bench_function(what, |b| b.iter_batched(copy, body, BatchSize::PerIteration));
}

fn dlopen(file: &Path) {
    let file = CString::new(file.as_os_str().as_bytes()).expect("a path without a zero");
    // SAFETY: the library is a plugin of this repository, whose initialisers do nothing that this process would mind.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null());
}

criterion_group!(benches, bench);
criterion_main!(benches);
