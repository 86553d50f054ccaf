-- A small SQLite database at revision 001, as that revision made it. Never changes: databases of that age exist.
BEGIN;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version VALUES('001');
CREATE TABLE generations (
	id TEXT NOT NULL,
	prompt TEXT NOT NULL,
	model_name TEXT NOT NULL,
	model_version TEXT,
	duration_seconds DOUBLE NOT NULL,
	sample_rate INTEGER NOT NULL,
	channels INTEGER NOT NULL,
	file_path TEXT NOT NULL,
	file_size_bytes INTEGER,
	status TEXT NOT NULL,
	created_at DATETIME NOT NULL,
	completed_at DATETIME,
	generation_time_seconds DOUBLE,
	error_message TEXT,
	metadata TEXT,
	CONSTRAINT pk_generations PRIMARY KEY (id)
);
CREATE TABLE prompts (
	id INTEGER NOT NULL,
	text TEXT NOT NULL,
	used_count INTEGER DEFAULT '1' NOT NULL,
	first_used_at DATETIME NOT NULL,
	last_used_at DATETIME NOT NULL,
	CONSTRAINT pk_prompts PRIMARY KEY (id),
	CONSTRAINT uq_prompts_text UNIQUE (text)
);
INSERT INTO generations VALUES
	('0191a0d0-0000-7000-8000-000000000001','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/1.wav',NULL,'pending','2025-11-07 10:00:00.000000',NULL,NULL,NULL,NULL),
	('0191a0d0-0000-7000-8000-000000000002','lo-fi "study" beat; with 100% rain','musicgen-small','1.0',8.5,44100,1,'outputs/2.wav',NULL,'processing','2025-11-07 10:00:01.250000',NULL,NULL,NULL,'{"bpm": 80}'),
	('0191a0d0-0000-7000-8000-000000000003','trap beat 140 BPM','musicgen-medium','1.1',30.0,48000,2,'outputs/3.wav',5242880,'completed','2025-11-07 10:00:02.000000','2025-11-07 10:00:20.500000',18.5,NULL,'{"bpm": 140, "key": "Cm"}'),
	('0191a0d0-0000-7000-8000-000000000004','Ümläute, 日本語 und 🎵','musicgen-small',NULL,4.0,32000,1,'outputs/4.wav',NULL,'failed','2025-11-07 10:00:03.000000','2025-11-07 10:00:04.000000',NULL,'CUDA out of memory',NULL);
INSERT INTO prompts VALUES
	(1,'trap beat 140 BPM',2,'2025-11-07 10:00:00.000000','2025-11-07 10:00:02.000000'),
	(2,'lo-fi "study" beat; with 100% rain',1,'2025-11-07 10:00:01.250000','2025-11-07 10:00:01.250000'),
	(3,'Ümläute, 日本語 und 🎵',1,'2025-11-07 10:00:03.000000','2025-11-07 10:00:03.000000'),
	(7,'a prompt whose generations were deleted',5,'2025-11-01 09:00:00.000000','2025-11-02 09:00:00.000000');
CREATE INDEX idx_generations_status ON generations (status);
CREATE INDEX idx_generations_created_at ON generations (created_at DESC);
CREATE INDEX idx_generations_model_name ON generations (model_name);
CREATE INDEX idx_generations_completed_at ON generations (completed_at DESC);
CREATE INDEX idx_prompts_text ON prompts (text);
COMMIT;
