//! The device-tree node of an MMIO device.
//!
//! The device says what it is and the machine adds where it is: `reg`, `interrupts` and the unit address come from the
//! resources the machine gave it, phandles from the nodes the machine makes for it.

/// A device-tree node, as the device describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdtNode {
    /// Generic name without unit address, such as `serial` (Devicetree Specification 0.4, 2.2.2).
    pub name: String,
    /// The `compatible` strings, most specific first.
    pub compatible: Vec<String>,
    /// Further properties in the order in which they are written.
    pub properties: Vec<(String, FdtValue)>,
    /// Whether the node is a console: the machine's first such node becomes `/chosen/stdout-path`.
    pub console: bool,
}

/// Value of a device-tree property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FdtValue {
    /// A property whose presence is its value.
    Empty,
    /// Cells of 32 bits.
    U32s(Vec<u32>),
    /// Values of 64 bits, two cells each.
    U64s(Vec<u64>),
    /// A string list.
    Strings(Vec<String>),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// Phandles of fixed clocks with these frequencies in Hz; the machine makes the clock nodes and shares equal ones.
    FixedClocks(Vec<u32>),
}

impl FdtNode {
    /// A node with a name and its compatible strings.
    pub fn new(name: &str, compatible: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            compatible: compatible.iter().map(|s| (*s).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// Adds a property.
    #[must_use]
    pub fn with(mut self, name: &str, value: FdtValue) -> Self {
        self.properties.push((name.to_owned(), value));
        self
    }

    /// Marks the node as a console.
    #[must_use]
    pub fn as_console(mut self) -> Self {
        self.console = true;
        self
    }
}
