//! Needs an interface of the host that no gvmm offers.

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.bad.needs-too-much","name":"needs_too_much","version":"1.0.0","vendor":"","url":"","description":"Needs too much","license":"","kind":"mmio","requires":["gvmm.tomorrow/1"],"syscalls":[],"options":[]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};
