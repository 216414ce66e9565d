#!/bin/sh
# Runs in the first stage of deploy/Dockerfile: what the image holds, in /opt/millrace, owned by root and readable by all.
set -eu
cd /source
uv=/source/.tools/bin/uv
export UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH
[ -n "${UV_DEFAULT_INDEX:-}" ] || unset UV_DEFAULT_INDEX
[ ! -s /run/secrets/certificates ] || export SSL_CERT_FILE=/run/secrets/certificates
umask 022

"$uv" venv --quiet --python "$(command -v python3)" /opt/millrace
python=/opt/millrace/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# First the sdist, then the wheel from it, as for the tests. The lock has the hash of every wheel; ours is of now.
"$uv" build --quiet --require-hashes --build-constraints deploy/requirements/uv.txt --python "$python" -o /wheel
wheel=$(echo /wheel/millrace-*.whl)
sum=$(sha256sum "$wheel" | cut -d ' ' -f 1)
echo "millrace[$EXTRAS] @ file://$wheel --hash=sha256:$sum" > /wheel/wanted.txt
"$uv" pip install --quiet --no-build --require-hashes --constraints deploy/requirements/image.txt --python "$python" -r /wheel/wanted.txt

# What differs from build to build: where the wheel lay and when; times of files, which bytecode would be compared with.
for file in direct_url.json uv_cache.json; do
  rm -f "$site"/millrace-*.dist-info/$file
  sed -i "/dist-info\/$file,/d" "$site"/millrace-*.dist-info/RECORD
done
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"

mkdir -p /opt/millrace/share/millrace
cp LICENSE NOTICE /opt/millrace/share/millrace/
"$python" deploy/image/bill.py /opt/millrace/share/millrace deploy/requirements/image.txt
rm -f /opt/millrace/.lock /opt/millrace/.gitignore /opt/millrace/CACHEDIR.TAG
find /opt/millrace -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
chmod -R a+rX,go-w /opt/millrace
