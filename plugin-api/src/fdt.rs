//! The device-tree nodes of an MMIO device.
//!
//! The device says what it is and the machine adds where it is: `reg`, `interrupts` and the unit address come from the
//! resources the machine gave it, phandles from the nodes the machine makes for it. What is at the device, such as keys
//! at the lines of a GPIO controller, has nodes of its own ([`ExtraNode`]).

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

/// A further node of a device, for the drivers of what is at it: a key, a light, a sensor on its bus.
///
/// ```
/// use gvmm_plugin_api::fdt::{ExtraNode, FdtValue};
///
/// // keys { compatible = "gpio-keys"; power { linux,code = <116>; gpios = <&device 3 0>; }; };
/// let power = ExtraNode::new("power", &[])
///     .with("linux,code", FdtValue::U32s(vec![116]))
///     .with_device("gpios", &[&[3, 0]]);
/// let keys = ExtraNode::new("keys", &["gpio-keys"]).with_child(power);
/// ```
///
/// Where it is, is the machine's to say, so that the properties that [`FdtNode`] leaves to the machine are none of an
/// extra node's either, with two exceptions: `reg` of a node that is not right under the root, which is an address on
/// the device's own bus, and `interrupt-parent` and `interrupts-extended` by [`with_device`](Self::with_device).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ExtraNode {
    /// Name, with a unit address if the node has `reg`.
    pub name: String,
    /// The `compatible` strings, most specific first; none if the driver of the node above reads this one too.
    pub compatible: Vec<String>,
    /// Further properties in the order in which they are written.
    pub properties: Vec<(String, FdtValue)>,
    /// Properties that refer to the device's own node, written behind the others: a name, and the cells that follow
    /// the device's phandle each time that it is written.
    pub references: Vec<(String, Vec<Vec<u32>>)>,
    /// Nodes below this one.
    pub children: Vec<ExtraNode>,
}

impl ExtraNode {
    /// Most extra nodes of a device, with all that is below them.
    pub const MAX_NODES: usize = 64;
    /// Most nodes from an extra node without one above it down to one without children.
    pub const MAX_DEPTH: usize = 4;
    /// Most bytes of names and values of a device's extra nodes.
    pub const MAX_BYTES: usize = 16 << 10;
    /// Longest name, in bytes, of a node beside the device's own: the machine appends the device's address to make it
    /// the only one of its name.
    pub const MAX_NAME_BESIDE: usize = 22;

    /// A node with a name and its compatible strings.
    pub fn new(name: &str, compatible: &[&str]) -> Self {
        let compatible = compatible.iter().map(|s| (*s).to_owned()).collect();
        Self { name: name.to_owned(), compatible, ..Self::default() }
    }

    /// Adds a property.
    #[must_use]
    pub fn with(mut self, name: &str, value: FdtValue) -> Self {
        self.properties.push((name.to_owned(), value));
        self
    }

    /// Adds a property that refers to the device: for each of the specifiers the device's phandle, and the cells of the
    /// specifier behind it. `&[&[3, 0]]` is line 3 of a GPIO controller, `&[&[]]` the device as a whole.
    #[must_use]
    pub fn with_device(mut self, name: &str, specifiers: &[&[u32]]) -> Self {
        self.references.push((name.to_owned(), specifiers.iter().map(|cells| cells.to_vec()).collect()));
        self
    }

    /// Adds a node below this one.
    #[must_use]
    pub fn with_child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }
}
