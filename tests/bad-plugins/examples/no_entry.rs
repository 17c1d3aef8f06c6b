//! Has a descriptor, but no code behind it.

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.bad.no-entry","name":"no_entry","version":"1.0.0","vendor":"","url":"","description":"Has no entry","license":"","kind":"mmio","requires":[],"syscalls":[],"options":[]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};
