//! Says that it was built for a later plugin API.

const TEXT: &str = r#"{"api":[9,1],"id":"org.gvmm.bad.other-api","shape":"unknown to this version"}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};
