//! The C pickler, called without ceremony, and what its output names.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn function<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let function = cell.get_or_try_init(py, || {
        py.import("_pickle")?.getattr(name).map(Bound::unbind)
    })?;
    Ok(function.bind(py))
}

/// `_pickle.dumps(value, 5)`.
pub(crate) fn dumps<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let bytes = function(py, &DUMPS, "dumps")?.call1((value, 5))?;
    Ok(bytes.cast_into()?)
}

/// `_pickle.loads(bytes)`, reading the bytes in place.
pub(crate) fn loads<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyBytes::new(py, bytes);
    function(py, &LOADS, "loads")?.call1((bytes,))
}

/// The main module, under both of its names: a child of `multiprocessing` uses the second.
const MAINS: [&[u8]; 2] = [b"__main__", b"__mp_main__"];

/// The names of what a pickle takes from `__main__`, in order; none without `__main__` in it.
///
/// A walk over the opcodes of protocol 5 that follows the strings on the stack and in the memo.
/// If it meets anything that the C pickler does not write, it says so, and the slow way is taken.
pub(crate) fn names_from_main(pickle: &[u8]) -> Option<Vec<String>> {
    if !contains(pickle, b"_main__") {
        return Some(Vec::new());
    }
    Walk {
        bytes: pickle,
        at: 0,
        memo: Vec::new(),
        last: [None, None],
        names: Vec::new(),
    }
    .run()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // The first bytes of the name are rare in pickles, so this is close to a plain scan.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == wanted[0]) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

type Text = Option<(usize, usize)>;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    memo: Vec<Text>,
    /// The last two things pushed, where they are strings.
    last: [Text; 2],
    names: Vec<String>,
}

impl Walk<'_> {
    fn number(&mut self, len: usize) -> Option<usize> {
        let bytes = self.bytes.get(self.at..self.at + len)?;
        self.at += len;
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(word)).ok()
    }

    fn push(&mut self, text: Text) {
        self.last = [self.last[1], text];
    }

    fn text(&mut self, len_bytes: usize) -> Option<()> {
        let len = self.number(len_bytes)?;
        let start = self.at;
        self.at = start.checked_add(len)?;
        self.bytes.get(start..self.at)?;
        self.push(Some((start, len)));
        Some(())
    }

    fn skip(&mut self, len_bytes: usize) -> Option<()> {
        let len = self.number(len_bytes)?;
        self.at = self.at.checked_add(len)?;
        self.push(None);
        Some(())
    }

    fn recall(&mut self, len_bytes: usize) -> Option<()> {
        let index = self.number(len_bytes)?;
        let text = *self.memo.get(index)?;
        self.push(text);
        Some(())
    }

    fn get(&self, text: Text) -> Option<&[u8]> {
        let (start, len) = text?;
        self.bytes.get(start..start + len)
    }

    fn run(mut self) -> Option<Vec<String>> {
        loop {
            let opcode = *self.bytes.get(self.at)?;
            self.at += 1;
            match opcode {
                b'.' => return Some(self.names),
                0x80 => self.at += 1,                 // PROTO
                0x95 => self.at += 8,                 // FRAME
                0x8c => self.text(1)?,                // SHORT_BINUNICODE
                b'X' => self.text(4)?,                // BINUNICODE
                0x8d => self.text(8)?,                // BINUNICODE8
                0x94 => self.memo.push(self.last[1]), // MEMOIZE
                b'h' => self.recall(1)?,              // BINGET
                b'j' => self.recall(4)?,              // LONG_BINGET
                b'C' | b'U' | 0x8a => self.skip(1)?,  // short bytes, short string, LONG1
                b'B' | b'T' | 0x8b => self.skip(4)?,  // bytes, string, LONG4
                0x8e | 0x96 => self.skip(8)?,         // BINBYTES8, BYTEARRAY8
                b'K' => {
                    self.at += 1; // BININT1
                    self.push(None);
                }
                b'M' => {
                    self.at += 2; // BININT2
                    self.push(None);
                }
                b'J' => {
                    self.at += 4; // BININT
                    self.push(None);
                }
                b'G' => {
                    self.at += 8; // BINFLOAT
                    self.push(None);
                }
                0x93 => {
                    // STACK_GLOBAL
                    let [module, name] = self.last;
                    if MAINS.contains(&self.get(module)?) {
                        let name = String::from_utf8(self.get(name)?.to_vec()).ok()?;
                        if !self.names.contains(&name) {
                            self.names.push(name);
                        }
                    }
                    self.push(None);
                }
                // None, True, False, empty containers, marks, and what builds from the stack.
                b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | 0x8f | b'(' | b'a' | b'e' | b's'
                | b'u' | 0x90 | 0x91 | b't' | 0x85 | 0x86 | 0x87 | b'R' | 0x81 | 0x92 | b'b'
                | b'0' | b'1' | b'2' | 0x97 | 0x98 => self.push(None),
                _ => return None,
            }
        }
    }
}
