//! Plain values as bytes, without pickle.
//!
//! None, bool, int (64 bits), float, str and bytes of exactly these types, and exact tuples of them:
//! what cannot be shared or changed, so that no copy can be told from the original. Everything else
//! is pickle's. A value is a type byte and its content, in the machine's order:
//!
//! | byte | type   | content                                  |
//! |------|--------|------------------------------------------|
//! | N    | None   |                                          |
//! | T, F | bool   |                                          |
//! | i    | int    | 4 bytes                                  |
//! | I    | int    | 8 bytes                                  |
//! | f    | float  | 8 bytes                                  |
//! | s    | str    | `u32` length, UTF-8                      |
//! | b    | bytes  | `u32` length, bytes                      |
//! | t    | tuple  | `u32` length, values                     |

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Tuples in tuples deeper than this are pickle's.
const DEEPEST: u32 = 16;
/// Strings and bytes longer than this are pickle's, which hands large ones over without a copy.
const LONGEST: usize = 32 * 1024;

/// Appends the value, if it is plain; else leaves some bytes behind that the caller cuts off.
#[inline]
pub(crate) fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    encode_at(value, out, 0)
}

fn encode_at(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
    let object = value.as_ptr();
    // SAFETY: `object` is a live reference of an attached thread; the type checks precede each
    // access, and borrowed pointers are used before anything can run that would free them.
    unsafe {
        if object == ffi::Py_None() {
            out.push(b'N');
        } else if object == ffi::Py_True() {
            out.push(b'T');
        } else if object == ffi::Py_False() {
            out.push(b'F');
        } else if ffi::PyLong_CheckExact(object) != 0 {
            let mut overflow = 0;
            let number = ffi::PyLong_AsLongLongAndOverflow(object, &raw mut overflow);
            if overflow != 0 {
                return false;
            }
            if let Ok(short) = i32::try_from(number) {
                out.push(b'i');
                out.extend_from_slice(&short.to_ne_bytes());
            } else {
                out.push(b'I');
                out.extend_from_slice(&number.to_ne_bytes());
            }
        } else if ffi::PyFloat_CheckExact(object) != 0 {
            out.push(b'f');
            out.extend_from_slice(&ffi::PyFloat_AsDouble(object).to_ne_bytes());
        } else if ffi::PyUnicode_CheckExact(object) != 0 {
            let mut len = 0;
            let text = ffi::PyUnicode_AsUTF8AndSize(object, &raw mut len);
            if text.is_null() {
                ffi::PyErr_Clear(); // surrogates: pickle can
                return false;
            }
            return put_bytes(
                out,
                b's',
                std::slice::from_raw_parts(text.cast(), len as usize),
            );
        } else if ffi::PyBytes_CheckExact(object) != 0 {
            let len = ffi::PyBytes_Size(object) as usize;
            let bytes = ffi::PyBytes_AsString(object);
            return put_bytes(out, b'b', std::slice::from_raw_parts(bytes.cast(), len));
        } else if ffi::PyTuple_CheckExact(object) != 0 {
            let len = ffi::PyTuple_Size(object);
            if depth >= DEEPEST || len > LONGEST as isize {
                return false;
            }
            out.push(b't');
            out.extend_from_slice(&(len as u32).to_ne_bytes());
            for index in 0..len {
                let item = Borrowed::from_ptr(value.py(), ffi::PyTuple_GetItem(object, index));
                if !encode_at(&item, out, depth + 1) {
                    return false;
                }
            }
        } else {
            return false;
        }
    }
    true
}

fn put_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) -> bool {
    if bytes.len() > LONGEST {
        return false;
    }
    out.push(kind);
    out.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
    out.extend_from_slice(bytes);
    true
}

fn malformed() -> PyErr {
    PyValueError::new_err("an encoded value makes no sense")
}

fn take<'bytes, const N: usize>(rest: &mut &'bytes [u8]) -> PyResult<&'bytes [u8; N]> {
    let (first, others) = rest.split_first_chunk::<N>().ok_or_else(malformed)?;
    *rest = others;
    Ok(first)
}

fn take_len<'bytes>(rest: &mut &'bytes [u8]) -> PyResult<&'bytes [u8]> {
    let len = u32::from_ne_bytes(*take(rest)?) as usize;
    let (content, others) = rest.split_at_checked(len).ok_or_else(malformed)?;
    *rest = others;
    Ok(content)
}

/// Takes one value off the front.
#[inline]
pub(crate) fn decode<'py>(py: Python<'py>, rest: &mut &[u8]) -> PyResult<Bound<'py, PyAny>> {
    decode_at(py, rest, 0)
}

fn decode_at<'py>(py: Python<'py>, rest: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let [kind] = *take::<1>(rest)?;
    // SAFETY: each call makes a new reference or sets an exception.
    unsafe {
        let object = match kind {
            b'N' => return Ok(py.None().into_bound(py)),
            b'T' => ffi::Py_NewRef(ffi::Py_True()),
            b'F' => ffi::Py_NewRef(ffi::Py_False()),
            b'i' => ffi::PyLong_FromLong(i32::from_ne_bytes(*take(rest)?).into()),
            b'I' => ffi::PyLong_FromLongLong(i64::from_ne_bytes(*take(rest)?)),
            b'f' => ffi::PyFloat_FromDouble(f64::from_ne_bytes(*take(rest)?)),
            b's' => {
                let text = take_len(rest)?;
                ffi::PyUnicode_DecodeUTF8(
                    text.as_ptr().cast(),
                    text.len() as isize,
                    std::ptr::null(),
                )
            }
            b'b' => {
                let bytes = take_len(rest)?;
                ffi::PyBytes_FromStringAndSize(bytes.as_ptr().cast(), bytes.len() as isize)
            }
            b't' => return decode_tuple(py, rest, depth),
            _ => return Err(malformed()),
        };
        Bound::from_owned_ptr_or_err(py, object)
    }
}

fn decode_tuple<'py>(py: Python<'py>, rest: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let len = u32::from_ne_bytes(*take(rest)?);
    if depth >= DEEPEST || len as usize > rest.len() {
        return Err(malformed());
    }
    // SAFETY: a new tuple, filled before anybody else sees it; PyTuple_SetItem takes the item.
    unsafe {
        let tuple = ffi::PyTuple_New(len as isize);
        let tuple = Bound::from_owned_ptr_or_err(py, tuple)?;
        for index in 0..len {
            let item = decode_at(py, rest, depth + 1)?;
            ffi::PyTuple_SetItem(tuple.as_ptr(), index as isize, item.into_ptr());
        }
        Ok(tuple)
    }
}
