#!/usr/bin/env bash
# Packs libblip2rt with everything that it loads but the C library: dist.sh ONNXRUNTIME_LIBRARY FOLDER [BUILD]
# FOLDER receives the tree blip2rt-c and an archive of it, which runs where nothing else is installed.
set -euo pipefail
runtime=$1 folder=$2 build=${3:-$2/build}
source=$(cd "$(dirname "$0")/../.." && pwd)
tree=$folder/blip2rt-c

# DT_RPATH, unlike DT_RUNPATH, also applies to what the packed libraries load.
cmake -S "$source" -B "$build" -DBLIP2RT_C=ON -DCMAKE_INSTALL_LIBDIR=lib \
  -DCMAKE_SHARED_LINKER_FLAGS=-Wl,--disable-new-dtags -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags >/dev/null
cmake --build "$build" --target blip2rt-c --parallel "$(nproc)" >/dev/null
rm -rf "$tree"
cmake --install "$build" --prefix "$tree" --strip >/dev/null

# Libraries by their names in the loader's list, except those of the C library itself.
cp "$runtime" "$tree/lib/libonnxruntime.so.1"
for file in "$tree"/lib/libblip2rt.so "$tree/lib/libonnxruntime.so.1"; do
  ldd "$file" | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}'
done | sort -u | while read -r name path; do
  case $name in
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libblip2rt.so.*) ;;
    *) cp -L "$path" "$tree/lib/$name" ;;
  esac
done

# Licences: ours, ONNX Runtime's, and those of the packed system libraries.
mkdir -p "$tree/share/doc/blip2rt"
cp "$source/LICENSE" "$tree/share/doc/blip2rt/LICENSE"
site=$(dirname "$(dirname "$(dirname "$runtime")")")
cp "$site"/onnxruntime/LICENSE "$tree/share/doc/blip2rt/LICENSE.onnxruntime"
cp "$site"/onnxruntime/ThirdPartyNotices.txt "$tree/share/doc/blip2rt/ThirdPartyNotices.onnxruntime"
for package in libjpeg62-turbo libpng16-16t64 libwebp7 zlib1g libstdc++6; do
  if [ -e "/usr/share/doc/$package/copyright" ]; then
    cp "/usr/share/doc/$package/copyright" "$tree/share/doc/blip2rt/copyright.$package"
  fi
done
tar -C "$folder" -czf "$folder/blip2rt-c-linux-$(uname -m).tar.gz" blip2rt-c
echo "$folder/blip2rt-c-linux-$(uname -m).tar.gz"
