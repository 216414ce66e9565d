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
wheel=$(echo /wheel/learning_millrace-*.whl)
sum=$(sha256sum "$wheel" | cut -d ' ' -f 1)
echo "learning-millrace[$EXTRAS] @ file://$wheel --hash=sha256:$sum" > /wheel/wanted.txt
"$uv" pip install --quiet --no-build --require-hashes --constraints deploy/requirements/image.txt --python "$python" -r /wheel/wanted.txt

# Take files out of a package, and out of its list: `without PACKAGE PATTERN`.
without() {
  for file in "$site"/$2; do
    name=${file#"$site"/}
    rm "$file"
    grep -vF "$name," "$site"/"$1"-*.dist-info/RECORD > /wheel/record
    cat /wheel/record > "$(echo "$site"/"$1"-*.dist-info/RECORD)"
  done
}
# Where our wheel lay and when is of this build alone. Ray draws virtualenv, which brings pip.
without learning_millrace 'learning_millrace-*.dist-info/direct_url.json'
without learning_millrace 'learning_millrace-*.dist-info/uv_cache.json'
if [ -d "$site/virtualenv" ]; then
  without virtualenv 'virtualenv/seed/wheels/embed/*.whl'
  without virtualenv 'virtualenv-*.dist-info/sboms/*'
fi
# Bytecode is not compared with the times of files, which differ from build to build until they are set below.
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"

mkdir -p /opt/millrace/share/millrace
cp LICENSE NOTICE /opt/millrace/share/millrace/
echo "$EXTRAS" > /opt/millrace/share/millrace/extras
"$python" deploy/image/bill.py /opt/millrace/share/millrace deploy/requirements/image.txt
rm -f /opt/millrace/.lock /opt/millrace/.gitignore /opt/millrace/CACHEDIR.TAG
find /opt/millrace -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
chmod -R a+rX,go-w /opt/millrace
