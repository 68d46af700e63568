#!/usr/bin/env bash
# Builds the C library with zig for a system where nothing else is installed, and runs it: portable.sh TARGET
# TARGET is x86_64-linux-musl, aarch64-linux-musl (one static program), x86_64-windows-gnu or aarch64-windows-gnu (a DLL).
# The result is build/portable/TARGET, with nano. It runs in an empty root, by qemu or by wine; elsewhere it only links.
set -euo pipefail
target=$1
cd "$(dirname "$0")/../.."
[ "build/images/$target/lib/libwebpdemux.a" -nt engines/c/images.sh ] || engines/c/images.sh "$target"

build=$PWD/build/static/$target tree=$PWD/build/portable/$target
static=OFF; [[ $target == *windows* ]] || static=ON
cmake -G Ninja -S . -B "$build" --toolchain "$PWD/engines/c/zig.cmake" -DZIG_TARGET="$target" -DBLIP2RT_C=ON \
  -DBLIP2RT_STATIC=$static -DCMAKE_INSTALL_LIBDIR=lib >/dev/null
cmake --build "$build" --target blip2rt-c
rm -rf "$tree"
cmake --install "$build" --prefix "$tree" >/dev/null
find "$tree" -name '*.exe' -o -name '*.dll' -o -path '*/bin/*' | sort -u | xargs ls -l

# Names that no code page of Windows has; relative to the folder that is the root, or the current one.
mkdir -p "$tree/zdjęcia 写真"
cp docs/photo.jpg "$tree/zdjęcia 写真/naïve Ω.jpg"
photo="zdjęcia 写真/naïve Ω.jpg"
case $target in
  x86_64-linux-musl) run=(chroot . /bin/blip2rt-c) ;;
  aarch64-linux-musl) run=(qemu-aarch64 bin/blip2rt-c) ;;
  x86_64-windows-gnu)
    export WINEDEBUG=-all WINEPREFIX=$PWD/build/wine
    run=(wine bin/blip2rt-c.exe)
    ;;
  *) echo "$target: linked, not run"; exit ;;
esac
[ "$(id -u)" = 0 ] || [ "${run[0]}" != chroot ] || run=(unshare --map-root-user "${run[@]}")

said=$build/said
(cd "$tree" && env -u DISPLAY "${run[@]}" caption "$photo" && env -u DISPLAY "${run[@]}" ask "$photo" "what is in the cup?" &&
  env -u DISPLAY "${run[@]}" match "$photo" "a cup — słodka" "a dog") | tr -d '\r' |
  awk -F '\t' 'NF == 3 {$1 = sprintf("%.0f", $1); $2 = sprintf("%.1f", $2)} 1' >"$said"  # Windows has no AMX
cat "$said"
cd "$tree"
if "${run[@]}" caption -o runtime=onnxruntime missing.jpg 2>"$said.error"; then exit 1; fi
[ "$(grep -c "^blip2rt-c: error: " "$said.error")" = 1 ]
diff "${said/$target/x86_64-linux-musl}" "$said"
head -1 "$said" | grep -qx "a cup of coffee sitting on a table"
