#!/usr/bin/env bash
# Builds zlib, libpng, libjpeg-turbo and libwebp for a target of zig, such as x86_64-linux-musl, into build/images/TARGET.
# Debian's mirrors provide the sources; a file that is already in build/images/sources is used without apt.
set -euo pipefail
target=$1
cd "$(dirname "$0")/../.."
images=$PWD/build/images
sources=$images/sources

fetch() {  # PACKAGE=VERSION FILE SHA256 [CMAKE OPTION]...
  [ -e "$sources/$2" ] || (cd "$sources" && apt-get "${apt[@]}" source --tar-only --quiet=2 "$1") || {
    echo "images.sh: cannot download $2: put it into $sources; snapshot.debian.org keeps old versions" >&2
    exit 1
  }
  echo "$3  $sources/$2" | sha256sum --check --quiet
}

build() {  # PACKAGE=VERSION FILE SHA256 [CMAKE OPTION]...
  local name=${1%%=*}
  fetch "$@"
  mkdir -p "$images/$name"
  tar -xzf "$sources/$2" -C "$images/$name" --strip-components=1
  [ "$name" != zlib ] || touch "$images"/zlib/{contrib/CMakeLists.txt,doc/{rfc195{0,1,2}.txt,crc-doc.1.0.pdf}}  # which Debian leaves out
  cmake -G Ninja -S "$images/$name" -B "$images/$name/$target" --toolchain "$PWD/engines/c/zig.cmake" \
    -DZIG_TARGET="$target" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$images/$target" \
    -DBUILD_SHARED_LIBS=OFF "${@:4}" >"$images/$name.log"
  cmake --build "$images/$name/$target" --target install >>"$images/$name.log"
}

mkdir -p "$sources" "$images/lists/partial"
printf '%s\n' 'Types: deb-src' 'URIs: http://deb.debian.org/debian' 'Suites: trixie unstable' 'Components: main' \
  'Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp' >"$images/debian.sources"
apt=(-o "Dir::Etc::sourcelist=$images/debian.sources" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$images/lists" -o "Dir::Cache=$images")
[ "$(find "$sources" -name '*.orig.tar.gz' | wc -l)" = 4 ] || apt-get "${apt[@]}" update -qq || true

build zlib=1:1.3.dfsg+really1.3.2-3 zlib_1.3.dfsg+really1.3.2.orig.tar.gz \
  7b6903eb019983987b7112eccf90f1703f1c6c0e0cede36564bf611d19ca579d -DZLIB_BUILD_TESTING=OFF -DZLIB_BUILD_SHARED=OFF
[ ! -e "$images/$target/lib/libzs.a" ] || ln -sf libzs.a "$images/$target/lib/libz.a"  # Windows' name, unknown to CMake
build libpng1.6=1.6.58-1 libpng1.6_1.6.58.orig.tar.gz \
  a9d4df463d36a6e5f9c29bd6f4967312d17e996c1854f3511f833924eb1993cf -DPNG_SHARED=OFF -DPNG_TESTS=OFF -DPNG_TOOLS=OFF
build libjpeg-turbo=1:3.1.3-4 libjpeg-turbo_3.1.3.orig.tar.gz \
  3a13a5ba767dc8264bc40b185e41368a80d5d5f945944d1dbaa4b2fb0099f4e5 -DENABLE_SHARED=OFF \
  -DWITH_{TURBOJPEG,TOOLS,TESTS}=OFF
build libwebp=1.6.0-0.1 libwebp_1.6.0.orig.tar.gz \
  e4ab7009bf0629fd11982d4c2aa83964cf244cffba7347ecd39019a9e38c4564 \
  -DWEBP_BUILD_{ANIM_UTILS,CWEBP,DWEBP,GIF2WEBP,IMG2WEBP,LIBWEBPMUX,VWEBP,WEBPINFO,WEBPMUX,EXTRAS}=OFF -DWEBP_USE_THREAD=OFF
