//! A call as bytes: what the parent encodes and the worker decodes.
//!
//! | tag            | payload                                        |
//! |----------------|------------------------------------------------|
//! | `ARGS_PLAIN`   | the tuple of arguments, by `codec`             |
//! | `ARGS`         | pickle of the tuple of arguments               |
//! | `ARGS_KWARGS`  | pickle of (arguments, keywords)                |
//! | `CALL`         | pickle of (callable, arguments, keywords)      |
//! | `ONE_PLAIN`    | the one argument, by `codec`                   |
//! | `ONE`          | pickle of the one argument                     |
//!
//! Results are `PLAIN` (by `codec`) or `PICKLE`, or `NOTHING` where a generator has ended; with the bit
//! `GATHERED` it is the list of all that one has yielded. Errors are what `manyhands._outcome` makes of them.
//! With the bit `NOTICED` something is to be told before it (`notices`). The bit `HIDE_ARGS` keeps arguments out of messages.

use crate::codec::{Decoder, Encoder, PlainValue};
use crate::functions::{self, PyDefinition};
use crate::once::intern;
use crate::pickle::Dumped;
use crate::store::{self, Exported, Kept, StoredBuffer};
use crate::{hooks, needs, notices, octets, pickle};
use manyhands_os::MessageFile;
use manyhands_runtime::{Buffer, Bytes, Definition};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const ARGS_PLAIN: u8 = 1;
pub(crate) const ARGS: u8 = 2;
pub(crate) const ARGS_KWARGS: u8 = 3;
pub(crate) const CALL: u8 = 4;
pub(crate) const ONE_PLAIN: u8 = 5;
pub(crate) const ONE: u8 = 6;
pub(crate) const HIDE_ARGS: u8 = 0x80;

pub(crate) const PLAIN: u8 = 1;
pub(crate) const PICKLE: u8 = 2;
pub(crate) const NOTHING: u8 = 3;
/// A bit of the two: it is the list of what a generator has yielded.
pub(crate) const GATHERED: u8 = 0x40;
/// A bit of the two: it is a tuple of what is to be told, and the value.
pub(crate) const NOTICED: u8 = 0x20;

/// The most bytes that are kept for the next value.
const MOST_KEPT: usize = 64 * 1024;

/// A call, encoded.
pub(crate) struct Call {
    pub(crate) definition: Option<Arc<Definition>>,
    pub(crate) needs: Vec<Arc<Definition>>,
    /// Who sends the call says in which context it runs.
    pub(crate) context: Option<Arc<Definition>>,
    pub(crate) tag: u8,
    pub(crate) payload: Bytes,
}

thread_local! {
    /// Where plain values are put together; kept small.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// For values that come alone.
    static DECODER: RefCell<Decoder> = RefCell::default();
}

/// Encodes a value with the codec, if it is plain; what else has to be known to decode it.
fn plain(value: &Bound<'_, PyAny>) -> PyResult<Option<(Bytes, Vec<Arc<Definition>>)>> {
    let mut encoder = Encoder::default();
    let bytes = SCRATCH.with(|scratch| {
        // Taken, since looking at a class may run anything.
        let mut bytes = scratch.take();
        bytes.clear();
        let is_plain = encoder.encode(value, &mut bytes);
        let found = is_plain.then(|| Bytes::copy_of(&bytes));
        if bytes.capacity() <= MOST_KEPT {
            scratch.replace(bytes);
        }
        found
    });
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let names = encoder.take_main_classes();
    let needs = if names.is_empty() {
        Vec::new()
    } else {
        bindings(value.py(), &names)?
    };
    Ok(Some((bytes, needs)))
}

/// Encodes a call. Everything in it is as it is now, whatever the caller changes later.
#[inline]
pub(crate) fn encode_call(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
    large: Large,
) -> PyResult<Call> {
    let mut definition = functions::definition(function)?;
    if definition.is_none() {
        definition = functions::captured(function)?;
    }
    encode_with(definition, function, args, kwargs, large)
}

/// Encodes a call of what has this definition; without one the function goes along.
#[inline]
fn encode_with(
    definition: Option<Arc<Definition>>,
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
    large: Large,
) -> PyResult<Call> {
    let py = function.py();
    let kwargs = kwargs.filter(|kwargs| !kwargs.is_empty());
    if definition.is_some()
        && kwargs.is_none()
        && let Some((payload, needs)) = plain(args.as_any())?
    {
        return Ok(Call {
            definition,
            needs,
            context: None,
            tag: ARGS_PLAIN,
            payload,
        });
    }
    let (sent, named) = octets::of_call(args, kwargs, definition.is_none())?;
    let (tag, object) = match (&definition, named) {
        (Some(_), None) => (ARGS, sent.into_any()),
        (Some(_), Some(named)) => (ARGS_KWARGS, (sent, named).into_pyobject(py)?.into_any()),
        (None, named) => (CALL, (function, sent, named).into_pyobject(py)?.into_any()),
    };
    let (dumped, needs) = by_pickle(&object, tag, large)?;
    if definition.is_none()
        && let Some(kept) = functions::keep_captured(function, dumped.weight())?
    {
        return encode_with(Some(kept), function, args, kwargs, large);
    }
    let (payload, needs) = match large.keep(py, &dumped.buffers)? {
        Some(kept) => (kept.with(to_bytes(dumped.bytes.as_bytes())), needs),
        None => {
            let (dumped, needs) = by_pickle(&object, tag, Large::Within)?;
            (to_bytes(dumped.bytes.as_bytes()), needs)
        }
    };
    Ok(Call {
        definition,
        needs,
        context: None,
        tag,
        payload,
    })
}

/// Where large buffers of a call travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Large {
    /// In the store.
    Apart {
        /// Whether a call waits for what is in flight where the store has no room. Items of a map do not: who
        /// takes their results is who sends them, so what is in flight might stay there.
        waits: bool,
    },
    /// As they came from there, if they did; else in the pickle.
    HandedOn,
    /// In the pickle.
    Within,
}

impl Large {
    /// The buffers where they are to be; none if they are to be in the pickle after all.
    fn keep(self, py: Python<'_>, buffers: &[Exported]) -> PyResult<Option<Kept>> {
        match self {
            Self::Apart { waits } => store::keep_all(py, buffers, waits),
            Self::HandedOn | Self::Within => Ok(store::hand_on(buffers)),
        }
    }
}

/// The definition of the function of a map: what it has captured is taken now and sent once to each
/// worker, of whatever kind the callable is.
pub(crate) fn define_for_map(function: &Bound<'_, PyAny>) -> PyResult<Arc<Definition>> {
    if let Some(definition) = functions::definition(function)? {
        return Ok(definition);
    }
    let definition = hooks::capture(function.py())?.call1((function,))?;
    Ok(definition.cast_into::<PyDefinition>()?.get().0.clone())
}

/// Encodes items of a map, one after another.
pub(crate) struct ItemEncoder {
    encoder: Encoder,
    /// What has to be known for the items since it was asked last.
    needs: Vec<Arc<Definition>>,
    large: Large,
}

/// An item that went by pickle.
pub(crate) struct Pickled {
    pub(crate) tag: u8,
    pub(crate) bytes: Py<PyBytes>,
    pub(crate) kept: Kept,
}

impl ItemEncoder {
    pub(crate) fn new(large: Large) -> Self {
        Self {
            encoder: Encoder::default(),
            needs: Vec::new(),
            large,
        }
    }

    /// Appends the item to `out` if it is plain, and gives its tag; else gives it as a pickle. With
    /// `star` the item is a tuple of arguments, else it is the one argument.
    #[inline]
    pub(crate) fn encode(
        &mut self,
        item: &Bound<'_, PyAny>,
        star: bool,
        out: &mut Vec<u8>,
    ) -> PyResult<Result<u8, Pickled>> {
        let start = out.len();
        if self.encoder.encode(item, out) {
            self.need_main_classes(item.py())?;
            return Ok(Ok(if star { ARGS_PLAIN } else { ONE_PLAIN }));
        }
        out.truncate(start);
        // If a class that it met cannot be sent, pickle will say so, of this item.
        let _said_by_pickle = self.need_main_classes(item.py());
        self.pickle(item, star).map(Err)
    }

    fn pickle(&mut self, item: &Bound<'_, PyAny>, star: bool) -> PyResult<Pickled> {
        let py = item.py();
        let item = &if star {
            octets::of_args(item.cast()?)?.into_any()
        } else {
            octets::of_value(item)?
        };
        let (tag, (bytes, needs, kept)) = match apart(item, self.large)? {
            Some(found) => (if star { ARGS } else { ONE }, found),
            // The slow way names the path to what it refuses, and wants arguments for that.
            None => {
                let args = if star {
                    item.clone()
                } else {
                    PyTuple::new(py, [item])?.into_any()
                };
                let (bytes, needs) = slow_pickle(&args, ARGS)?;
                (ARGS, (bytes, needs, Kept::default()))
            }
        };
        for need in needs {
            self.need(need);
        }
        Ok(Pickled {
            tag,
            bytes: bytes.unbind(),
            kept,
        })
    }

    /// Has what `take_needs` gave given again.
    pub(crate) fn put_back(&mut self, needs: &[Arc<Definition>]) {
        for need in needs {
            self.need(need.clone());
        }
    }

    fn need(&mut self, need: Arc<Definition>) {
        if !self.needs.iter().any(|other| Arc::ptr_eq(other, &need)) {
            self.needs.push(need);
        }
    }

    /// Sees to it that the classes of `__main__` that the last item is the first to have are known. If
    /// one cannot be sent, it is that item which fails, and each later one that has it.
    #[inline]
    fn need_main_classes(&mut self, py: Python<'_>) -> PyResult<()> {
        if !self.encoder.has_main_classes() {
            return Ok(());
        }
        let names = self.encoder.take_main_classes();
        match bindings(py, &names) {
            Ok(found) => found.into_iter().for_each(|need| self.need(need)),
            Err(error) => {
                self.encoder = Encoder::default();
                return Err(error);
            }
        }
        Ok(())
    }

    /// What has to be known for the items since it was asked last. What it found of classes is
    /// forgotten with that: it holds for one block.
    pub(crate) fn take_needs(&mut self) -> Vec<Arc<Definition>> {
        self.encoder = Encoder::default();
        std::mem::take(&mut self.needs)
    }
}

/// Copies bytes; many go to a message file, if one can be had, and so do those that have no room among the
/// addresses of this process.
pub(crate) fn to_bytes(bytes: &[u8]) -> Bytes {
    const SOME: usize = 16 * 1024;
    const MANY: usize = 1 << 20;
    let file = || MessageFile::new(bytes).map(Bytes::File).ok();
    let found = match bytes.len() {
        MANY.. if MessageFile::count() < 64 => file(),
        SOME.. => Bytes::try_copy_of(bytes).or_else(file),
        _ => None,
    };
    found.unwrap_or_else(|| Bytes::copy_of(bytes))
}

type PickledNeeds<'py> = (Bound<'py, PyBytes>, Vec<Arc<Definition>>);

/// Pickles an object, the fast way where that is right.
fn by_pickle<'py>(
    object: &Bound<'py, PyAny>,
    tag: u8,
    large: Large,
) -> PyResult<(Dumped<'py>, Vec<Arc<Definition>>)> {
    if let Some(found) = quick_pickle(object, large)? {
        return Ok(found);
    }
    let (bytes, needs) = slow_pickle(object, tag)?;
    let buffers = Vec::new();
    Ok((Dumped { bytes, buffers }, needs))
}

type Apart<'py> = (Bound<'py, PyBytes>, Vec<Arc<Definition>>, Kept);

/// The fast way, with large buffers in the store as long as that has room: none where it is not right.
fn apart<'py>(object: &Bound<'py, PyAny>, large: Large) -> PyResult<Option<Apart<'py>>> {
    let py = object.py();
    let Some((Dumped { bytes, buffers }, needs)) = quick_pickle(object, large)? else {
        return Ok(None);
    };
    if let Some(kept) = large.keep(py, &buffers)? {
        return Ok(Some((bytes, needs, kept)));
    }
    let within = quick_pickle(object, Large::Within)?;
    Ok(within.map(|(dumped, needs)| (dumped.bytes, needs, Kept::default())))
}

/// The fast way: none where it is not right.
fn quick_pickle<'py>(
    object: &Bound<'py, PyAny>,
    large: Large,
) -> PyResult<Option<(Dumped<'py>, Vec<Arc<Definition>>)>> {
    let py = object.py();
    let (dumped, mut needs) = needs::hear(|| match large {
        Large::Apart { .. } => pickle::dumps_apart(py, object, store::LARGE),
        Large::HandedOn => pickle::dumps_apart(py, object, usize::MAX),
        Large::Within => pickle::dumps(py, object).map(|bytes| Dumped {
            bytes,
            buffers: Vec::new(),
        }),
    });
    match dumped {
        Ok(dumped) => {
            if let Some(names) = pickle::names_from_main(dumped.bytes.as_bytes()) {
                if !names.is_empty() {
                    needs.append(&mut bindings(py, &names)?);
                }
                return Ok(Some((dumped, needs)));
            }
            Ok(None)
        }
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py) => {
            Err(error)
        }
        // The slow way says what is wrong, if it can do no better.
        Err(_) => Ok(None),
    }
}

fn slow_pickle<'py>(object: &Bound<'py, PyAny>, tag: u8) -> PyResult<PickledNeeds<'py>> {
    let answer = hooks::dumps(object.py())?
        .call1((object, tag))?
        .cast_into::<PyTuple>()?;
    let bytes = answer.get_item(0)?.cast_into::<PyBytes>()?;
    Ok((bytes, definitions(&answer.get_item(1)?)?))
}

fn definitions(list: &Bound<'_, PyAny>) -> PyResult<Vec<Arc<Definition>>> {
    list.try_iter()?
        .map(|item| Ok(item?.cast_into::<PyDefinition>()?.get().0.clone()))
        .collect()
}

struct Binding {
    object: Py<PyAny>,
    needs: Vec<Arc<Definition>>,
}

/// Bindings of names of `__main__`, as long as the names mean the same objects.
static BINDINGS: Mutex<Option<HashMap<String, Binding>>> = Mutex::new(None);

fn bindings(py: Python<'_>, names: &[String]) -> PyResult<Vec<Arc<Definition>>> {
    let main = py
        .import("sys")?
        .getattr(intern!(py, "modules"))?
        .get_item(intern!(py, "__main__"))?;
    let main = main
        .getattr(intern!(py, "__dict__"))?
        .cast_into::<PyDict>()?;
    let mut needs: Vec<Arc<Definition>> = Vec::new();
    for name in names {
        let top = name.split('.').next().unwrap_or(name);
        let object = main.get_item(PyString::new(py, top))?;
        let known = {
            let bindings = BINDINGS.lock().unwrap_or_else(PoisonError::into_inner);
            bindings
                .as_ref()
                .and_then(|bindings| bindings.get(top))
                .and_then(|binding| {
                    let current = object
                        .as_ref()
                        .is_some_and(|object| binding.object.is(object));
                    current.then(|| binding.needs.clone())
                })
        };
        let found = match (known, object) {
            (Some(found), _) => found,
            (None, object) => {
                let found = definitions(&hooks::bindings(py)?.call1(([top],))?)?;
                if let Some(object) = object {
                    let binding = Binding {
                        object: object.unbind(),
                        needs: found.clone(),
                    };
                    let mut bindings = BINDINGS.lock().unwrap_or_else(PoisonError::into_inner);
                    let old = bindings
                        .get_or_insert_default()
                        .insert(top.to_owned(), binding);
                    drop(bindings);
                    drop(old);
                }
                found
            }
        };
        for need in found {
            if !needs.iter().any(|other| Arc::ptr_eq(other, &need)) {
                needs.push(need);
            }
        }
    }
    Ok(needs)
}

/// Has all names looked at anew.
pub(crate) fn forget_bindings() {
    let mut bindings = BINDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let gone = bindings.take();
    drop(bindings); // what it held may run anything when it goes
    drop(gone);
}

/// What a worker calls: a callable where the call brought its own, arguments, keywords.
pub(crate) type Decoded<'py> = (
    Option<Bound<'py, PyAny>>,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyDict>>,
);

/// Decodes a call, with views of the buffers that it speaks of.
#[inline]
pub(crate) fn decode_call<'py>(
    py: Python<'py>,
    tag: u8,
    bytes: &[u8],
    buffers: Vec<Bound<'py, StoredBuffer>>,
) -> PyResult<Decoded<'py>> {
    match tag & !HIDE_ARGS {
        ARGS_PLAIN => Ok((None, decode_plain(py, bytes)?.cast_into()?, None)),
        ARGS => Ok((None, pickle::loads(py, bytes, buffers)?.cast_into()?, None)),
        ONE_PLAIN => Ok((None, PyTuple::new(py, [decode_plain(py, bytes)?])?, None)),
        ONE => Ok((
            None,
            PyTuple::new(py, [pickle::loads(py, bytes, buffers)?])?,
            None,
        )),
        ARGS_KWARGS => {
            let call = pickle::loads(py, bytes, buffers)?.cast_into::<PyTuple>()?;
            let kwargs = call.get_item(1)?.cast_into()?;
            Ok((None, call.get_item(0)?.cast_into()?, Some(kwargs)))
        }
        _ => {
            let call = pickle::loads(py, bytes, buffers)?.cast_into::<PyTuple>()?;
            let kwargs = call.get_item(2)?;
            let kwargs = if kwargs.is_none() {
                None
            } else {
                Some(kwargs.cast_into()?)
            };
            Ok((
                Some(call.get_item(0)?),
                call.get_item(1)?.cast_into()?,
                kwargs,
            ))
        }
    }
}

/// What an item of a block runs its function with.
pub(crate) enum Item<'py> {
    One(Bound<'py, PyAny>),
    Star(Bound<'py, PyTuple>),
}

/// Decodes an item of a block.
#[inline]
pub(crate) fn decode_item<'py>(
    py: Python<'py>,
    decoder: &mut Decoder,
    tag: u8,
    mut bytes: &[u8],
) -> Result<Item<'py>, Box<PyErr>> {
    Ok(match tag {
        ONE_PLAIN => Item::One(decoder.decode(py, &mut bytes)?),
        ARGS_PLAIN => Item::Star(
            decoder
                .decode(py, &mut bytes)?
                .cast_into()
                .map_err(PyErr::from)?,
        ),
        _ => return Ok(decode_pickled(py, tag, bytes)?),
    })
}

#[cold]
fn decode_pickled<'py>(py: Python<'py>, tag: u8, bytes: &[u8]) -> PyResult<Item<'py>> {
    let item = pickle::loads(py, bytes, Vec::new())?;
    Ok(match tag {
        ONE => Item::One(item),
        _ => Item::Star(item.cast_into()?),
    })
}

/// Decodes a plain value that comes alone.
fn decode_plain<'py>(py: Python<'py>, mut bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // Taken, since a class that is looked up may import its module, which may run anything.
    let mut decoder = DECODER.take();
    let value = decoder.decode(py, &mut bytes);
    decoder.forget_classes();
    DECODER.replace(decoder);
    value.map_err(|error| *error)
}

/// Decodes a result that comes alone.
#[inline]
pub(crate) fn decode_value<'py>(
    py: Python<'py>,
    tag: u8,
    bytes: &[u8],
    buffers: &[Buffer],
) -> PyResult<Bound<'py, PyAny>> {
    let value = match tag & !(GATHERED | NOTICED) {
        PLAIN => decode_plain(py, bytes),
        NOTHING => Ok(py.None().into_bound(py)),
        _ => pickle::loads(py, bytes, store::views(py, buffers)?),
    }?;
    if tag & NOTICED == 0 {
        Ok(value)
    } else {
        notices::told(py, &value)
    }
}

/// Decodes a result of an item, one of many.
#[inline]
pub(crate) fn decode_result<'py>(
    py: Python<'py>,
    decoder: &mut Decoder,
    tag: u8,
    mut bytes: &[u8],
) -> PlainValue<'py> {
    if tag == PLAIN {
        decoder.decode(py, &mut bytes)
    } else {
        Ok(decode_value(py, tag, bytes, &[])?)
    }
}
