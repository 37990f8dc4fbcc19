//! How many threads the libraries have that are loaded in this process.
//!
//! Libraries for numbers read at their load how many threads to use, from variables of the environment. Who comes
//! later has to call their setters. They are looked for among the objects that are loaded, by the names of
//! files and of functions; nothing is loaded for that.

/// Kinds of libraries that have a setter in C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadedLibrary {
    /// OpenBLAS, also as the wheels of NumPy and SciPy bring it.
    OpenBlas,
    /// The run-times of OpenMP; what is set holds for the calling thread.
    OpenMp,
    /// Intel's MKL.
    Mkl,
    /// BLIS.
    Blis,
}

/// Has each loaded library of this kind use so many threads from now on; how many such libraries there are.
pub fn set_library_threads(library: ThreadedLibrary, count: u32) -> usize {
    platform::set_library_threads(library, count.clamp(1, i32::MAX.cast_unsigned()))
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod platform {
    use super::ThreadedLibrary;

    pub(super) fn set_library_threads(_library: ThreadedLibrary, _count: u32) -> usize {
        0
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod platform {
    use super::ThreadedLibrary;
    use std::ffi::{CStr, CString, c_int, c_long, c_void};

    impl ThreadedLibrary {
        /// What the names of its files begin with.
        fn files(self) -> &'static [&'static str] {
            match self {
                Self::OpenBlas => &["libopenblas", "libscipy_openblas"],
                Self::OpenMp => &["libgomp", "libiomp", "libomp"],
                Self::Mkl => &["libmkl_rt"],
                Self::Blis => &["libblis"],
            }
        }

        /// What its setter may be called, after how it was built.
        fn setters(self) -> &'static [&'static CStr] {
            match self {
                Self::OpenBlas => &[
                    c"openblas_set_num_threads",
                    c"openblas_set_num_threads64_",
                    c"scipy_openblas_set_num_threads",
                    c"scipy_openblas_set_num_threads64_",
                ],
                Self::OpenMp => &[c"omp_set_num_threads"],
                Self::Mkl => &[c"MKL_Set_Num_Threads"],
                Self::Blis => &[c"bli_thread_set_num_threads"],
            }
        }

        fn is_in(self, path: &CStr) -> bool {
            let path = path.to_bytes();
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
            self.files()
                .iter()
                .any(|file| name.starts_with(file.as_bytes()))
        }
    }

    pub(super) fn set_library_threads(library: ThreadedLibrary, count: u32) -> usize {
        let paths = loaded_objects()
            .into_iter()
            .filter(|path| library.is_in(path));
        paths
            .filter(|path| set_threads(library, path, count))
            .count()
    }

    /// The files of the objects that are loaded.
    fn loaded_objects() -> Vec<CString> {
        unsafe extern "C" fn note(
            object: *mut libc::dl_phdr_info,
            _size: usize,
            paths: *mut c_void,
        ) -> c_int {
            // SAFETY: what `dl_iterate_phdr` was given, which is used by this call alone.
            let paths = unsafe { &mut *paths.cast::<Vec<CString>>() };
            // SAFETY: the loader describes an object, whose name is a string or null.
            let name = unsafe { (*object).dlpi_name };
            if !name.is_null() {
                // SAFETY: as above; it stays while the loader's lock is held, which this call does.
                paths.push(unsafe { CStr::from_ptr(name) }.to_owned());
            }
            0
        }
        let mut paths: Vec<CString> = Vec::new();
        // SAFETY: the function takes what is handed to it, and does not unwind.
        unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut paths).cast()) };
        paths
    }

    /// Calls the setter of a loaded object; false if it has none.
    fn set_threads(library: ThreadedLibrary, path: &CStr, count: u32) -> bool {
        // SAFETY: a string; the object is loaded already, so that no code of it runs.
        let object = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if object.is_null() {
            return false; // it was unloaded meanwhile
        }
        let setter = library.setters().iter().find_map(|name| {
            // SAFETY: an object that is held open, and a string.
            let address = unsafe { libc::dlsym(object, name.as_ptr()) };
            (!address.is_null()).then_some(address)
        });
        if let Some(address) = setter {
            if library == ThreadedLibrary::Blis {
                // SAFETY: the function of this name takes an integer as wide as a pointer.
                let set =
                    unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_long)>(address) };
                set(c_long::from(count));
            } else {
                // SAFETY: functions of these names take an int.
                let set =
                    unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_int)>(address) };
                set(count.cast_signed());
            }
        }
        // SAFETY: opened above. It stays loaded, since who loaded it holds it too.
        unsafe { libc::dlclose(object) };
        setter.is_some()
    }

    #[cfg(test)]
    mod tests {
        use super::{ThreadedLibrary, loaded_objects};
        use crate::set_library_threads;

        #[test]
        fn libraries_are_known_by_their_files() {
            let library = ThreadedLibrary::OpenBlas;
            assert!(library.is_in(c"/usr/lib/libopenblas.so.0"));
            assert!(library.is_in(c"/x/numpy.libs/libscipy_openblas64_-32a4b2a6.so"));
            assert!(!library.is_in(c"/libopenblas/libm.so"));
            assert!(ThreadedLibrary::OpenMp.is_in(c"libgomp-a49a47f9.so.1.0.0"));
            assert!(!ThreadedLibrary::OpenMp.is_in(c"libompl.so.1/libc.so.6"));
        }

        #[test]
        fn what_is_not_loaded_is_not_set() {
            assert!(loaded_objects().len() > 1);
            assert_eq!(set_library_threads(ThreadedLibrary::Mkl, 1), 0);
        }
    }
}
