//! Ends the process as soon as it is loaded.

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.bad.dies","name":"dies_when_loaded","version":"1.0.0","vendor":"","url":"","description":"Ends the process","license":"MIT","kind":"mmio","requires":[],"syscalls":[],"options":[]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};

extern "C" fn constructor() {
    std::process::abort()
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;
