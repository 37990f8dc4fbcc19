use super::*;
use manyhands_os::page_size;

const BLOCK: u64 = 1 << 20;
const LEN: usize = 100_000;

/// Views of a window in which a block of ones is.
fn views() -> Arc<Views> {
    let window = Window::create(1 << 24).unwrap();
    window.write_cold(BLOCK, &[1; LEN]).unwrap();
    Arc::new(Views::new(Arc::new(window), std::process::id()))
}

/// A part of the block.
fn part(start: usize, len: usize, is_writable: bool) -> Reference {
    Reference {
        block: BLOCK,
        start,
        len,
        is_writable,
    }
}

fn open(views: &Arc<Views>, is_writable: bool) -> View {
    let view = views.open(part(0, LEN, is_writable)).unwrap();
    assert_eq!((view.len(), view.is_writable()), (LEN, is_writable));
    assert!(view.is_unchanged().unwrap());
    view
}

fn read(view: &View, at: usize) -> u8 {
    assert!(at < view.len());
    // SAFETY: a byte of the view, which nobody writes meanwhile.
    unsafe { view.ptr().as_ptr().add(at).read_volatile() }
}

fn write(view: &View, at: usize, byte: u8) {
    assert!(at < view.len() && view.is_writable());
    // SAFETY: a byte of a writable view, which nobody reads meanwhile.
    unsafe { view.ptr().as_ptr().add(at).write_volatile(byte) };
}

fn is_in_window(view: &View) -> bool {
    matches!(view.place, Place::Window { .. })
}

#[test]
fn readers_share_the_window() {
    let views = views();
    let pair = [open(&views, false), open(&views, false)];
    assert!(pair.iter().all(is_in_window));
    assert_eq!(pair[0].ptr(), pair[1].ptr());
    let part = views.open(part(5000, 10, false)).unwrap();
    assert_eq!(
        part.ptr().as_ptr() as usize,
        pair[0].ptr().as_ptr() as usize + 5000
    );
    assert!(!is_in_window(&open(&views, true)), "a writer comes later");
    drop(pair);
    assert!(!is_in_window(&open(&views, true)), "one reader is left");
    drop(part);
    assert!(is_in_window(&open(&views, true)));
    assert!(views.lock().is_empty());
}

#[test]
fn writers_see_their_own_changes_alone() {
    let views = views();
    let (first, second, reader) = (open(&views, true), open(&views, true), open(&views, false));
    assert_eq!(
        [&first, &second, &reader].map(is_in_window),
        [true, false, false]
    );
    write(&first, 7, 2);
    write(&second, 7, 3);
    assert_eq!(
        [&first, &second, &reader].map(|view| read(view, 7)),
        [2, 3, 1]
    );
    let changed = [&first, &second, &reader].map(|view| !view.is_unchanged().unwrap());
    assert_eq!(changed, [true, true, false]);
    let elsewhere = Reference {
        block: BLOCK * 2,
        ..part(0, LEN, true)
    };
    let elsewhere = views.open(elsewhere).unwrap();
    assert!(is_in_window(&elsewhere) && elsewhere.is_unchanged().unwrap());
    drop(first);
    let next = open(&views, true);
    assert!(is_in_window(&next));
    assert_eq!(read(&next, 7), 1, "the change went with the view");
}

#[test]
fn what_was_written_to_a_part_goes_with_it() {
    let views = views();
    let part = views.open(part(3, 2 * page_size(), true)).unwrap();
    write(&part, 0, 9);
    write(&part, 2 * page_size() - 1, 9);
    drop(part);
    let whole = open(&views, false);
    assert!((0..LEN).all(|at| read(&whole, at) == 1));
}

#[test]
fn clean_pages_follow_a_recycled_block() {
    let views = views();
    let view = open(&views, true);
    assert_eq!(read(&view, LEN - 1), 1);
    write(&view, 0, 2);
    drop(view);
    views.window.write_warm(BLOCK, &[5; LEN]).unwrap();
    let view = open(&views, false);
    assert!((0..LEN).all(|at| read(&view, at) == 5));
}

#[test]
fn a_view_that_is_not_in_the_window_is_an_error() {
    let views = views();
    let end = views.window.len() as u64;
    for (block, start) in [(end, 0), (u64::MAX, 1), (BLOCK, usize::MAX)] {
        for is_writable in [true, false] {
            let reference = Reference {
                block,
                ..part(start, 1, is_writable)
            };
            assert!(views.open(reference).is_err());
        }
    }
    assert!(views.lock().is_empty(), "nothing was counted");
}

#[test]
fn another_process_leaves_the_views_alone() {
    let mut views = views();
    Arc::get_mut(&mut views).unwrap().process = 0;
    // As if a thread of the parent held it at the fork: whoever locks it waits for ever.
    let held = views.clone();
    let guard = held.lock();
    let view = open(&views, true);
    assert!(!is_in_window(&view));
    write(&view, 0, 2);
    drop(view);
    let views = views.clone();
    let inherited = View {
        start: views.window.private().unwrap(),
        len: LEN,
        is_writable: true,
        place: Place::Window {
            block: BLOCK,
            offset: BLOCK,
            faults: fault_count(),
        },
        views,
    };
    drop(inherited);
    assert!(guard.is_empty());
}

#[test]
fn a_write_is_a_fault_whoever_does_it() {
    let views = views();
    // Used before, so that only what is written takes faults.
    drop(open(&views, true));
    let view = open(&views, true);
    let before = fault_count();
    write(&view, 5000, 2);
    assert!(fault_count() > before);
    assert!(!view.is_unchanged().unwrap());
    drop(view);
    let view = open(&views, true);
    // The kernel writes, for a thread that has ended when somebody asks.
    let start = view.ptr().as_ptr().expose_provenance();
    let reads = move || {
        let mut file = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: bytes of the view, which nobody else uses meanwhile.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(start), 10)
        };
        let before = fault_count();
        std::io::Read::read_exact(&mut file, bytes).unwrap();
        assert!(fault_count() > before);
    };
    std::thread::spawn(reads).join().unwrap();
    assert!(!view.is_unchanged().unwrap());
    drop(view);
    let view = open(&views, true);
    assert_eq!((read(&view, 0), read(&view, 5000)), (1, 1));
}
