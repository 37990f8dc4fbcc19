//! Puts a frame that cannot be unwound below each call that may run code of the user (see `unwinding`).

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// What runs code of the user, or waits for the GIL. They have six arguments in registers at most, also those that
/// take any number. Not `_Py_DecRef`, which is called several times for each item, and seldom blocks.
const CALLS: [&str; 17] = [
    "PyErr_NormalizeException",
    "PyEval_RestoreThread",
    "PyGILState_Ensure",
    "PyImport_Import",
    "PyIter_Next",
    "PyObject_Call",
    "PyObject_CallFunctionObjArgs",
    "PyObject_CallMethodObjArgs",
    "PyObject_CallNoArgs",
    "PyObject_CallObject",
    "PyObject_GetAttr",
    "PyObject_GetItem",
    "PyObject_GetIter",
    "PyObject_IsTrue",
    "PyObject_Repr",
    "PyObject_SetAttr",
    "PyObject_Str",
];

/// Keeps a frame pointer for profilers, and has no line of `.cfi`.
fn frame(arch: &str) -> Option<[&'static str; 2]> {
    match arch {
        "x86_64" => Some([
            "push rbp\nmov rbp, rsp\ncall qword ptr [rip + __real_NAME@GOTPCREL]",
            "pop rbp\nret",
        ]),
        "aarch64" => Some([
            "stp x29, x30, [sp, #-16]!\nmov x29, sp\nbl __real_NAME",
            "ldp x29, x30, [sp], #16\nret",
        ]),
        _ => None,
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo says which");
    let mut text = String::new();
    if let Some([call, end]) = frame(&arch) {
        text.push_str(".text\n");
        for name in CALLS {
            println!("cargo::rustc-link-arg-cdylib=-Wl,--wrap={name}");
            let call = call.replace("NAME", name);
            writeln!(
                text,
                ".globl __wrap_{name}\n.hidden __wrap_{name}\n.type __wrap_{name}, @function\n\
                 __wrap_{name}:\n{call}\n{end}\n.size __wrap_{name}, . - __wrap_{name}"
            )
            .expect("a String takes all");
        }
    }
    let path = Path::new(&env::var_os("OUT_DIR").expect("cargo says where")).join("unwinding.s");
    fs::write(path, text).expect("the directory of builds can be written");
}
