//! Plain values as bytes, without pickle.
//!
//! None, bool, int (64 bits), float, str and bytes of exactly these types, and exact tuples, lists and
//! dicts of them; and instances of plain classes (`classes`). Everything else is pickle's. A value is a
//! type byte and its content, in the machine's order:
//!
//! | byte | type     | content                                                        |
//! |------|----------|----------------------------------------------------------------|
//! | N    | None     |                                                                |
//! | T, F | bool     |                                                                |
//! | i    | int      | 4 bytes                                                        |
//! | I    | int      | 8 bytes                                                        |
//! | f    | float    | 8 bytes                                                        |
//! | s    | str      | `u32` length, UTF-8                                            |
//! | b    | bytes    | `u32` length, bytes                                            |
//! | t    | tuple    | `u32` length, values                                           |
//! | l    | list     | `u32` length, values                                           |
//! | d    | dict     | `u32` length, keys and values                                  |
//! | o    | instance | `u32` length, `module:name` of the class; its `__dict__` as `d` |
//!
//! **One object stays one object.** Lists, dicts and instances can be changed, so a value in which one
//! of them is met twice is pickle's, which keeps it one. What has a single reference cannot be met
//! twice, and needs no look.

use crate::classes::{Classes, Named};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Values in values deeper than this are pickle's.
const DEEPEST: u32 = 64;
/// Strings and bytes longer than this are pickle's, which hands large ones over without a copy.
const LONGEST: usize = 32 * 1024;
/// How many objects with several references are looked out for.
const MOST_SEEN: usize = 64;
/// How many keys a decoder remembers.
const KEYS: usize = 256;
/// The longest key that it remembers.
const LONGEST_KEY: usize = 32;

/// A value, or what is wrong: small enough to be returned in registers.
pub(crate) type PlainValue<'py> = Result<Bound<'py, PyAny>, Box<PyErr>>;

/// Encodes values; what it knows of classes holds for as long as it lives, which is not long.
#[derive(Default)]
pub(crate) struct Encoder {
    classes: Classes,
    /// Containers of this value with more than one reference.
    seen: Vec<usize>,
}

impl Encoder {
    /// Appends the value, if it is plain; else leaves some bytes behind that the caller cuts off.
    #[inline]
    pub(crate) fn encode(&mut self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
        self.seen.clear();
        self.encode_at(value, out, 0)
    }

    /// Whether classes of `__main__` were met since it was asked for them.
    #[inline]
    pub(crate) fn has_main_classes(&self) -> bool {
        self.classes.has_main()
    }

    /// The classes of `__main__` that were met since it was asked last.
    pub(crate) fn take_main_classes(&mut self) -> Vec<String> {
        self.classes.take_main()
    }

    /// Whether the container is new to this value.
    #[inline]
    fn is_new(&mut self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: a live object of an attached thread.
        if unsafe { ffi::Py_REFCNT(object) } == 1 {
            return true;
        }
        let address = object as usize;
        if self.seen.len() >= MOST_SEEN || self.seen.contains(&address) {
            return false;
        }
        self.seen.push(address);
        true
    }

    fn encode_at(&mut self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
        let object = value.as_ptr();
        // SAFETY: `object` is a live reference of an attached thread; the type checks precede each
        // access, and borrowed pointers are used before anything can run that would free them.
        unsafe {
            if ffi::PyLong_CheckExact(object) != 0 {
                let mut overflow = 0;
                let number = ffi::PyLong_AsLongLongAndOverflow(object, &raw mut overflow);
                if overflow != 0 {
                    return false;
                }
                if let Ok(short) = i32::try_from(number) {
                    let mut bytes = [b'i', 0, 0, 0, 0];
                    bytes[1..].copy_from_slice(&short.to_ne_bytes());
                    out.extend_from_slice(&bytes);
                } else {
                    let mut bytes = [b'I', 0, 0, 0, 0, 0, 0, 0, 0];
                    bytes[1..].copy_from_slice(&number.to_ne_bytes());
                    out.extend_from_slice(&bytes);
                }
            } else if ffi::PyUnicode_CheckExact(object) != 0 {
                let mut len = 0;
                let text = ffi::PyUnicode_AsUTF8AndSize(object, &raw mut len);
                if text.is_null() {
                    ffi::PyErr_Clear(); // surrogates: pickle can
                    return false;
                }
                let text = std::slice::from_raw_parts(text.cast(), len as usize);
                return put_bytes(out, b's', text);
            } else if ffi::PyFloat_CheckExact(object) != 0 {
                let mut bytes = [b'f', 0, 0, 0, 0, 0, 0, 0, 0];
                bytes[1..].copy_from_slice(&ffi::PyFloat_AsDouble(object).to_ne_bytes());
                out.extend_from_slice(&bytes);
            } else if object == ffi::Py_None() {
                out.push(b'N');
            } else if object == ffi::Py_True() {
                out.push(b'T');
            } else if object == ffi::Py_False() {
                out.push(b'F');
            } else if ffi::PyBytes_CheckExact(object) != 0 {
                let len = ffi::PyBytes_Size(object) as usize;
                let bytes = ffi::PyBytes_AsString(object);
                return put_bytes(out, b'b', std::slice::from_raw_parts(bytes.cast(), len));
            } else if depth >= DEEPEST {
                return false;
            } else if ffi::PyTuple_CheckExact(object) != 0 {
                let len = ffi::PyTuple_Size(object);
                if len > 0 && !self.is_new(object) {
                    return false;
                }
                put_len(out, b't', len);
                for index in 0..len {
                    let item = Borrowed::from_ptr(value.py(), ffi::PyTuple_GetItem(object, index));
                    if !self.encode_at(&item, out, depth + 1) {
                        return false;
                    }
                }
            } else if ffi::PyList_CheckExact(object) != 0 {
                if !self.is_new(object) {
                    return false;
                }
                let len = ffi::PyList_Size(object);
                put_len(out, b'l', len);
                for index in 0..len {
                    // Something may have shortened the list meanwhile.
                    let item = ffi::PyList_GetItem(object, index);
                    let Some(item) = Bound::from_borrowed_ptr_or_opt(value.py(), item) else {
                        ffi::PyErr_Clear();
                        return false;
                    };
                    if !self.encode_at(&item, out, depth + 1) {
                        return false;
                    }
                }
                return ffi::PyList_Size(object) == len;
            } else if ffi::PyDict_CheckExact(object) != 0 {
                return self.is_new(object) && self.encode_dict(value, out, depth);
            } else {
                return self.encode_instance(value, out, depth);
            }
        }
        true
    }

    /// Appends a dict, which is in `seen`.
    fn encode_dict(&mut self, dict: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
        let object = dict.as_ptr();
        // SAFETY: a live dict. Keys and values are held while they are used; a dict that something
        // changes meanwhile has another length in the end, or gives other items, but no wild ones.
        unsafe {
            let len = ffi::PyDict_Size(object);
            put_len(out, b'd', len);
            let (mut at, mut count) = (0, 0);
            let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
            while ffi::PyDict_Next(object, &raw mut at, &raw mut key, &raw mut value) != 0 {
                let key = Bound::from_borrowed_ptr(dict.py(), key);
                let value = Bound::from_borrowed_ptr(dict.py(), value);
                if !self.encode_at(&key, out, depth + 1) || !self.encode_at(&value, out, depth + 1)
                {
                    return false;
                }
                count += 1;
            }
            count == len && ffi::PyDict_Size(object) == len
        }
    }

    fn encode_instance(&mut self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
        if !self.is_new(value.as_ptr()) {
            return false;
        }
        let Some(name) = self.classes.name_of(&value.get_type()) else {
            return false;
        };
        put_bytes(out, b'o', name);
        // SAFETY: an instance of a class without a `__dict__` of its own making; the function gives
        // a new reference or sets an exception.
        let dict = unsafe { ffi::PyObject_GenericGetDict(value.as_ptr(), std::ptr::null_mut()) };
        // SAFETY: as above.
        let Some(dict) = (unsafe { Bound::from_owned_ptr_or_opt(value.py(), dict) }) else {
            // SAFETY: an attached thread; whatever was raised, pickle will meet it again.
            unsafe { ffi::PyErr_Clear() };
            return false;
        };
        // SAFETY: a live object.
        let is_dict = unsafe { ffi::PyDict_CheckExact(dict.as_ptr()) } != 0;
        is_dict && has_plain_names(&dict) && self.encode_dict(&dict, out, depth + 1)
    }
}

/// Whether an instance's `__dict__` holds nothing that would change how it is pickled.
fn has_plain_names(dict: &Bound<'_, PyAny>) -> bool {
    let (mut at, mut key) = (0, std::ptr::null_mut());
    // SAFETY: a live dict, in which nothing is changed here; borrowed keys are used at once.
    unsafe {
        while ffi::PyDict_Next(
            dict.as_ptr(),
            &raw mut at,
            &raw mut key,
            std::ptr::null_mut(),
        ) != 0
        {
            if ffi::PyUnicode_CheckExact(key) == 0 {
                return false;
            }
            let mut len = 0;
            let text = ffi::PyUnicode_AsUTF8AndSize(key, &raw mut len);
            if text.is_null() {
                ffi::PyErr_Clear();
                return false;
            }
            let text: &[u8] = std::slice::from_raw_parts(text.cast(), len as usize);
            if text.starts_with(b"__") {
                return false;
            }
        }
    }
    true
}

#[inline]
fn put_len(out: &mut Vec<u8>, kind: u8, len: isize) {
    let mut bytes = [kind, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&(len as u32).to_ne_bytes());
    out.extend_from_slice(&bytes);
}

#[inline]
fn put_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) -> bool {
    if bytes.len() > LONGEST {
        return false;
    }
    put_len(out, kind, bytes.len() as isize);
    out.extend_from_slice(bytes);
    true
}

fn malformed() -> Box<PyErr> {
    Box::new(PyValueError::new_err("an encoded value makes no sense"))
}

#[inline]
fn take<'bytes, const N: usize>(rest: &mut &'bytes [u8]) -> Result<&'bytes [u8; N], Box<PyErr>> {
    let (first, others) = rest.split_first_chunk::<N>().ok_or_else(malformed)?;
    *rest = others;
    Ok(first)
}

#[inline]
fn take_len<'bytes>(rest: &mut &'bytes [u8]) -> Result<&'bytes [u8], Box<PyErr>> {
    let len = u32::from_ne_bytes(*take(rest)?) as usize;
    let (content, others) = rest.split_at_checked(len).ok_or_else(malformed)?;
    *rest = others;
    Ok(content)
}

/// A key that was met.
struct Key {
    text: Box<[u8]>,
    object: Py<PyAny>,
}

/// Decodes values. It remembers keys, of which most values have the same, and classes.
#[derive(Default)]
pub(crate) struct Decoder {
    keys: Vec<Option<Key>>,
    named: Named,
}

impl Decoder {
    /// Has classes looked up anew: names may mean others by now.
    pub(crate) fn forget_classes(&mut self) {
        self.named.clear();
    }

    /// Takes one value off the front.
    #[inline]
    pub(crate) fn decode<'py>(&mut self, py: Python<'py>, rest: &mut &[u8]) -> PlainValue<'py> {
        self.decode_at(py, rest, 0)
    }

    fn decode_at<'py>(&mut self, py: Python<'py>, rest: &mut &[u8], depth: u32) -> PlainValue<'py> {
        let [kind] = *take::<1>(rest)?;
        // SAFETY: each call makes a new reference or sets an exception.
        unsafe {
            let object = match kind {
                b'i' => ffi::PyLong_FromLong(i32::from_ne_bytes(*take(rest)?).into()),
                b's' => {
                    let text = take_len(rest)?;
                    new_str(text)
                }
                b'f' => ffi::PyFloat_FromDouble(f64::from_ne_bytes(*take(rest)?)),
                b'I' => ffi::PyLong_FromLongLong(i64::from_ne_bytes(*take(rest)?)),
                b'N' => return Ok(py.None().into_bound(py)),
                b'T' => ffi::Py_NewRef(ffi::Py_True()),
                b'F' => ffi::Py_NewRef(ffi::Py_False()),
                b'b' => {
                    let bytes = take_len(rest)?;
                    ffi::PyBytes_FromStringAndSize(bytes.as_ptr().cast(), bytes.len() as isize)
                }
                b't' | b'l' => return self.decode_sequence(py, rest, depth, kind == b't'),
                b'd' => return self.decode_dict(py, rest, depth),
                b'o' => return self.decode_instance(py, rest, depth),
                _ => return Err(malformed()),
            };
            Bound::from_owned_ptr_or_opt(py, object).ok_or_else(|| fetched(py))
        }
    }

    fn decode_sequence<'py>(
        &mut self,
        py: Python<'py>,
        rest: &mut &[u8],
        depth: u32,
        is_tuple: bool,
    ) -> PlainValue<'py> {
        let len = count(rest, depth)?;
        // SAFETY: a new object, filled before anybody else sees it; the setters take the item.
        unsafe {
            let made = if is_tuple {
                ffi::PyTuple_New(len)
            } else {
                ffi::PyList_New(len)
            };
            let made = Bound::from_owned_ptr_or_err(py, made)?;
            for index in 0..len {
                let item = self.decode_at(py, rest, depth + 1)?.into_ptr();
                if is_tuple {
                    ffi::PyTuple_SetItem(made.as_ptr(), index, item);
                } else {
                    ffi::PyList_SetItem(made.as_ptr(), index, item);
                }
            }
            Ok(made)
        }
    }

    fn decode_dict<'py>(
        &mut self,
        py: Python<'py>,
        rest: &mut &[u8],
        depth: u32,
    ) -> PlainValue<'py> {
        let len = count(rest, depth)?;
        // SAFETY: a new dict.
        let dict = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyDict_New()) }?;
        self.fill_dict(&dict, rest, depth, len)?;
        Ok(dict)
    }

    fn fill_dict(
        &mut self,
        dict: &Bound<'_, PyAny>,
        rest: &mut &[u8],
        depth: u32,
        len: isize,
    ) -> Result<(), Box<PyErr>> {
        let py = dict.py();
        for _ in 0..len {
            let key = if rest.first() == Some(&b's') {
                *rest = &rest[1..];
                let text = take_len(rest)?;
                self.key(py, text)?
            } else {
                self.decode_at(py, rest, depth + 1)?
            };
            let value = self.decode_at(py, rest, depth + 1)?;
            // SAFETY: a live dict, which takes references of its own.
            let status =
                unsafe { ffi::PyDict_SetItem(dict.as_ptr(), key.as_ptr(), value.as_ptr()) };
            if status != 0 {
                return Err(fetched(py));
            }
        }
        Ok(())
    }

    /// The string, the same object for the same text where it is short.
    fn key<'py>(&mut self, py: Python<'py>, text: &[u8]) -> PlainValue<'py> {
        if text.len() > LONGEST_KEY {
            // SAFETY: a new reference, or an exception.
            return Ok(unsafe { Bound::from_owned_ptr_or_err(py, new_str(text)) }?);
        }
        if self.keys.is_empty() {
            self.keys.resize_with(KEYS, || None);
        }
        let mut hash = text.len() as u64;
        for chunk in text.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_ne_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let entry = &mut self.keys[(hash >> 56) as usize % KEYS];
        if let Some(key) = entry
            && *key.text == *text
        {
            return Ok(key.object.bind(py).clone());
        }
        // SAFETY: a new reference, or an exception.
        let key = unsafe { Bound::from_owned_ptr_or_err(py, new_str(text)) }?;
        *entry = Some(Key {
            text: text.into(),
            object: key.clone().unbind(),
        });
        Ok(key)
    }

    fn decode_instance<'py>(
        &mut self,
        py: Python<'py>,
        rest: &mut &[u8],
        depth: u32,
    ) -> PlainValue<'py> {
        let name = take_len(rest)?;
        let instance = self.named.instantiate(py, name)?;
        let [kind] = *take::<1>(rest)?;
        let len = count(rest, depth)?;
        if kind != b'd' {
            return Err(malformed());
        }
        if len > 0 {
            // SAFETY: a live instance; a new reference, or an exception.
            let dict = unsafe {
                let dict = ffi::PyObject_GenericGetDict(instance.as_ptr(), std::ptr::null_mut());
                Bound::from_owned_ptr_or_err(py, dict)
            }?;
            self.fill_dict(&dict, rest, depth + 1, len)?;
        }
        Ok(instance)
    }
}

/// The exception that is set.
#[cold]
fn fetched(py: Python<'_>) -> Box<PyErr> {
    Box::new(PyErr::fetch(py))
}

/// A number of values that can be there.
#[inline]
fn count(rest: &mut &[u8], depth: u32) -> Result<isize, Box<PyErr>> {
    let len = u32::from_ne_bytes(*take(rest)?);
    if depth > DEEPEST || len as usize > rest.len() {
        return Err(malformed());
    }
    Ok(len as isize)
}

/// A new string, or null with an exception.
#[inline]
unsafe fn new_str(text: &[u8]) -> *mut ffi::PyObject {
    // SAFETY: an attached thread; the bytes are read before the call returns.
    unsafe {
        ffi::PyUnicode_DecodeUTF8(text.as_ptr().cast(), text.len() as isize, std::ptr::null())
    }
}
